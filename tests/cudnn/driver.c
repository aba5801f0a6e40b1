// A driver without a card, so that cuDNN makes plans for one that is described to it: every
// function that it looks for is there and says that all is well. Nothing that it loads can be run.
#define FINE(name) \
    int name(void) { return 0; }
// What gives a handle gives one of nothing.
static long nothing[64];
#define MADE(name) \
    int name(void **made) { return *made = &nothing, 0; }

FINE(cuCtxGetDevice)
FINE(cuCtxGetLimit)
FINE(cuCtxPopCurrent)
FINE(cuCtxPushCurrent)
FINE(cuDeviceGet)
FINE(cuDeviceGetCount)
FINE(cuDevicePrimaryCtxRelease)
FINE(cuDevicePrimaryCtxReset)
FINE(cuFuncSetAttribute)
FINE(cuGetErrorName)
FINE(cuGetErrorString)
FINE(cuInit)
FINE(cuKernelGetAttribute)
FINE(cuKernelSetAttribute)
FINE(cuLaunchCooperativeKernel)
FINE(cuLaunchKernel)
FINE(cuLaunchKernelEx)
FINE(cuLibraryUnload)
FINE(cuLinkAddData)
FINE(cuLinkAddData_v2)
FINE(cuLinkAddFile_v2)
FINE(cuLinkComplete)
FINE(cuLinkCreate)
FINE(cuLinkCreate_v2)
FINE(cuLinkDestroy)
FINE(cuMemcpyDtoH_v2)
FINE(cuModuleGetGlobal_v2)
FINE(cuModuleUnload)
FINE(cuOccupancyMaxPotentialClusterSize)
FINE(cuStreamGetCtx)
FINE(cuStreamSynchronize)
FINE(cuTensorMapEncodeTiled)

MADE(cuCtxGetCurrent)
MADE(cuDevicePrimaryCtxRetain)
MADE(cuLibraryGetKernel)
MADE(cuLibraryLoadData)
MADE(cuLibraryLoadFromFile)
MADE(cuModuleGetFunction)
MADE(cuModuleLoadData)
MADE(cuModuleLoadDataEx)
MADE(cuModuleLoadFatBinary)

// NVRTC asks for a table of its own and does without.
int cuGetExportTable(const void **table) {
    *table = 0;
    return 500;
}

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}

// Compute capability 9.0.
int cuDeviceGetAttribute(int *value, int which, int card) {
    (void)card;
    *value = which == 75 ? 9 : 0;
    return 0;
}

int cuFuncGetAttribute(int *value, int which, void *function) {
    (void)which, (void)function;
    *value = 0;
    return 0;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads,
                                                unsigned long bytes) {
    (void)function, (void)threads, (void)bytes;
    *blocks = 1;
    return 0;
}
