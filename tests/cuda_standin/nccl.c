/* Stands in for NCCL, libnccl.so.2, with a single rank: exactly the functions that BytePS takes from it. A sum over one
 * rank, or a broadcast to it, is a copy. For the tests only. */

#include <stddef.h>
#include <string.h>

enum { ncclSuccess = 0, ncclInvalidArgument = 4, ncclInvalidUsage = 5 };

typedef struct {
    char internal[128];
} ncclUniqueId;

/* In the order of ncclDataType_t: int8, uint8, int32, uint32, int64, uint64, float16, float32, float64, bfloat16. */
static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

static int communicator; /* what every communicator points to: nothing is kept in it */

static int copy(const void *from, void *to, size_t count, int type) {
    if (type < 0 || type >= (int)(sizeof sizes / sizeof *sizes)) return ncclInvalidArgument;
    memmove(to, from, count * sizes[type]);
    return ncclSuccess;
}

int ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    return ncclSuccess;
}

int ncclCommInitRank(void **comm, int ranks, ncclUniqueId id, int rank) {
    if (ranks != 1 || rank != 0) return ncclInvalidUsage;
    *comm = &communicator;
    return ncclSuccess;
}

int ncclGroupStart(void) {
    return ncclSuccess;
}

int ncclGroupEnd(void) {
    return ncclSuccess;
}

int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, void *comm, void *stream) {
    return copy(from, to, count, type);
}

int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream) {
    return copy(from, to, count, type);
}

int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream) {
    return copy(from, to, count, type);
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream) {
    return copy(from, to, count, type);
}

const char *ncclGetErrorString(int result) {
    switch (result) {
        case ncclSuccess: return "no error";
        case ncclInvalidUsage: return "the stand-in for NCCL has a single rank";
        default: return "invalid argument";
    }
}
