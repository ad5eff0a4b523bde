/* Stands in for the CUDA runtime, libcudart.so.11.0, on a machine without a GPU: exactly the functions that BytePS takes
 * from it. Device memory is host memory, a copy is done when it is asked for, and so a stream or an event that is waited
 * for has always finished. For the tests only. */

#include <stddef.h>
#include <string.h>

enum { cudaSuccess = 0 };

static int handle; /* what every stream and event points to: nothing is kept in them */

#define DONE(name, ...)     \
    int name(__VA_ARGS__) { \
        return cudaSuccess; \
    }

DONE(cudaSetDevice, int device)

DONE(cudaHostRegister, void *pointer, size_t size, unsigned flags)
DONE(cudaHostUnregister, void *pointer)

int cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    *device = host;
    return cudaSuccess;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    memmove(to, from, size);
    return cudaSuccess;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return cudaMemcpy(to, from, size, kind);
}

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = 0;
    return cudaSuccess;
}

int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    *stream = &handle;
    return cudaSuccess;
}

int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    return cudaStreamCreateWithFlags(stream, flags);
}

DONE(cudaStreamSynchronize, void *stream)
DONE(cudaStreamDestroy, void *stream)

int cudaEventCreateWithFlags(void **event, unsigned flags) {
    *event = &handle;
    return cudaSuccess;
}

DONE(cudaEventRecord, void *event, void *stream)
DONE(cudaEventSynchronize, void *event)
DONE(cudaEventDestroy, void *event)

const char *cudaGetErrorString(int error) {
    return error == cudaSuccess ? "no error" : "an error that the stand-in never reports";
}
