/* Stands in for the NVIDIA driver, libcuda.so.1, on a machine without one: exactly the functions that libmxnet.so of
 * mxnet-cu112 1.9.1 takes from it, each reporting that there is no device. */

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

STUB(cuDeviceGet)
STUB(cuDevicePrimaryCtxRetain)
STUB(cuGraphKernelNodeGetParams)
STUB(cuGraphNodeGetType)
STUB(cuLaunchKernel)
STUB(cuModuleGetFunction)
STUB(cuModuleLoadData)
STUB(cuModuleLoadDataEx)
STUB(cuModuleUnload)
