/* Stands in for the NVIDIA driver, libcuda.so.1, on a machine without one: the functions that libmxnet.so of
 * mxnet-cu112 1.9.1 takes from it, each reporting that there is no device, and those by which base/gpus.py asks what
 * there is. STUB_DRIVER_VERSION is the driver's (12020 where not set), STUB_CAPABILITIES those of its GPUs, as in
 * "75 90"; none by default. */

#include <stdio.h>
#include <stdlib.h>

#define STUB(name)                   \
    int name(void) {                 \
        return CUDA_ERROR_NO_DEVICE; \
    }

enum { CUDA_SUCCESS = 0, CUDA_ERROR_NO_DEVICE = 100 };

int cuGetErrorString(int error, const char **text) {
    (void)error;
    *text = "no CUDA-capable device is detected";
    return CUDA_SUCCESS;
}

/* The capability of GPU number index, 10 times major plus minor; how many GPUs there are, where *count is wanted. */
static int capability(int index, int *count) {
    const char *text = getenv("STUB_CAPABILITIES");
    int found = 0, number, length, value = 0;
    while (text && sscanf(text, "%d%n", &number, &length) == 1) {
        if (found++ == index) value = number;
        text += length;
    }
    if (count) *count = found;
    return value;
}

int cuInit(unsigned flags) {
    int count;
    (void)flags;
    capability(0, &count);
    return count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

int cuDriverGetVersion(int *version) {
    const char *text = getenv("STUB_DRIVER_VERSION");
    *version = text ? atoi(text) : 12020;
    return CUDA_SUCCESS;
}

int cuDeviceGetCount(int *count) {
    capability(0, count);
    return CUDA_SUCCESS;
}

int cuDeviceGet(int *device, int index) {
    int count;
    capability(index, &count);
    *device = index;
    return index < count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Stub %d", device);
    return CUDA_SUCCESS;
}

int cuDeviceGetPCIBusId(char *name, int length, int device) {
    snprintf(name, length, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int number = capability(device, NULL);
    *value = attribute == 75 ? number / 10 : attribute == 76 ? number % 10 : 0;
    return CUDA_SUCCESS;
}

STUB(cuDevicePrimaryCtxRetain)
STUB(cuGraphKernelNodeGetParams)
STUB(cuGraphNodeGetType)
STUB(cuLaunchKernel)
STUB(cuModuleGetFunction)
STUB(cuModuleLoadData)
STUB(cuModuleLoadDataEx)
STUB(cuModuleUnload)
