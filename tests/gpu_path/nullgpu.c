/* A GPU that answers and computes nothing: the CUDA runtime, driver and cuBLAS calls that PyTorch, Triton and
   bitsandbytes make on the way of a training step. Kernels and matrix products return at once; device memory is address
   space that is reserved and never touched, counted against the card's size; copies above COPY_MAX are not made. Calls
   without a body here answer 0 (see cuda_build.py). NULLGPU names the card, NULLGPU_COUNT how many there are.

   What a test reads are the counters: nullgpu_stats() and nullgpu_reset(). */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#undef cuLinkCreate
#undef cuLinkAddData

#define COPY_MAX 65536
#define CONTEXT ((size_t)450000000) /* what a context takes of a card before anything is allocated */
#define PAGE ((size_t)2 << 20)

static const struct card {
    const char *key, *name;
    int major, minor, sms, shared_block, shared_sm;
    size_t bytes;
} CARDS[] = {
    {"L40", "NVIDIA L40", 8, 9, 142, 101376, 102400, 47676129280ull},
    {"A10", "NVIDIA A10", 8, 6, 72, 101376, 102400, 23696375808ull},
    {"A100", "NVIDIA A100-SXM4-80GB", 8, 0, 108, 166912, 167936, 85094825984ull},
    {"H100", "NVIDIA H100 80GB HBM3", 9, 0, 132, 232448, 233472, 85029158912ull},
    {"RTX4090", "NVIDIA GeForce RTX 4090", 8, 9, 128, 101376, 102400, 25393692672ull},
    {"RTX5090", "NVIDIA GeForce RTX 5090", 12, 0, 170, 101376, 102400, 33661911040ull},
};
static const struct card *card = CARDS;
static int count = 1;
static size_t total, used, peak;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
enum { LAUNCHES, PRODUCTS, STREAM_WAITS, EVENT_WAITS, TO_DEVICE, TO_HOST, BYTES_TO_DEVICE, BYTES_TO_HOST, COUNTERS };
static atomic_long counter[COUNTERS];
static __thread int current;

__attribute__((constructor)) static void start(void) {
    const char *key = getenv("NULLGPU"), *many = getenv("NULLGPU_COUNT");
    for (size_t i = 0; key && i < sizeof CARDS / sizeof *CARDS; i++)
        if (!strcmp(key, CARDS[i].key)) card = &CARDS[i];
    count = many ? atoi(many) : 1;
    total = card->bytes;
}

/* launches, products, waits for a stream, waits for an event, copies to the device and to the host, their bytes, and
   the bytes of device memory in use and at most in use since the last reset: 10 numbers */
void nullgpu_stats(long *out) {
    for (int i = 0; i < COUNTERS; i++) out[i] = counter[i];
    out[COUNTERS] = used, out[COUNTERS + 1] = peak;
}
void nullgpu_reset(void) {
    for (int i = 0; i < COUNTERS; i++) counter[i] = 0;
    peak = used;
}

/* Device memory ------------------------------------------------------------------------------------------------ */

#define RANGES 200000
static struct range { char *at; size_t size; } ranges[RANGES];
static int range_count;

static void *reserve(size_t size) {
    void *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    pthread_mutex_lock(&lock);
    ranges[range_count++] = (struct range){at, size};
    pthread_mutex_unlock(&lock);
    return at;
}
static size_t release(void *at) { /* the size of what began there */
    size_t size = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < range_count && !size; i++)
        if (ranges[i].at == at) {
            munmap(at, size = ranges[i].size);
            ranges[i] = ranges[--range_count];
        }
    pthread_mutex_unlock(&lock);
    return size;
}
static int take(size_t size) {
    int fits;
    pthread_mutex_lock(&lock);
    if ((fits = used + size + CONTEXT <= total) && (used += size) > peak) peak = used;
    pthread_mutex_unlock(&lock);
    return fits;
}
static void give(size_t size) {
    pthread_mutex_lock(&lock);
    used -= size;
    pthread_mutex_unlock(&lock);
}
static int on_device(const void *at) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < range_count && !found; i++)
        found = (char *)at >= ranges[i].at && (char *)at < ranges[i].at + ranges[i].size;
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaMalloc(void **at, size_t size) {
    size = (size + PAGE - 1) / PAGE * PAGE;
    *at = NULL;
    if (!size) return cudaSuccess;
    if (!take(size)) return cudaErrorMemoryAllocation;
    return (*at = reserve(size)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *at) {
    if (at) give(release(at));
    return cudaSuccess;
}
cudaError_t cudaMallocManaged(void **at, size_t size, unsigned flags) {
    return (*at = reserve(size)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaHostAlloc(void **at, size_t size, unsigned flags) {
    return (*at = aligned_alloc(4096, (size + 4095) & ~4095ull)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *at) {
    free(at);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *all) {
    *all = total, *left = total - used - CONTEXT;
    return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **at, const void *symbol) { return cudaMalloc(at, COPY_MAX); }

/* the allocator's expandable segments: address space and memory apart */
CUresult cuMemAddressReserve(CUdeviceptr *at, size_t size, size_t alignment, CUdeviceptr hint, unsigned long long f) {
    return (*at = (CUdeviceptr)reserve(size)) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemAddressFree(CUdeviceptr at, size_t size) {
    release((void *)at);
    return CUDA_SUCCESS;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *p, unsigned long long f) {
    *handle = size; /* what cuMemRelease gives back */
    return take(size) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    give(handle);
    return CUDA_SUCCESS;
}
CUresult cuMemGetAllocationGranularity(size_t *size, const CUmemAllocationProp *p, CUmemAllocationGranularity_flags f) {
    *size = PAGE;
    return CUDA_SUCCESS;
}

/* Copies and waits --------------------------------------------------------------------------------------------- */

static void copy(void *to, const void *from, size_t size) {
    int there = on_device(from), here = on_device(to);
    if (there && !here) counter[TO_HOST]++, counter[BYTES_TO_HOST] += size;
    if (!there && here) counter[TO_DEVICE]++, counter[BYTES_TO_DEVICE] += size;
    if (size <= COPY_MAX) memcpy(to, from, size);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    copy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    counter[STREAM_WAITS]++;
    copy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream) {
    if (size <= COPY_MAX) memset(at, value, size);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return counter[STREAM_WAITS]++, cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return counter[STREAM_WAITS]++, cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return counter[EVENT_WAITS]++, cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { return *ms = 1, cudaSuccess; }

/* handles: any number that is no null pointer, a new one each time where they are compared */
static atomic_long handles = 64;
static void *handle(void) { return (void *)(handles += 16); }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return *event = handle(), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return *event = handle(), cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { return *s = handle(), cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { return *s = handle(), cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *st) { return *st = 0, cudaSuccess; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *number) {
    *status = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    if (number) *number = 0;
    return cudaSuccess;
}

/* The device --------------------------------------------------------------------------------------------------- */

static int threads_a_sm(void) { return card->major == 8 && card->minor ? 1536 : card->major == 12 ? 1536 : 2048; }
cudaError_t cudaGetDeviceCount(int *number) { return *number = count, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return current = device, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { return *low = 0, *high = -5, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int to) { return *can = 0, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, card->name);
    p->totalGlobalMem = total, p->major = card->major, p->minor = card->minor;
    p->multiProcessorCount = card->sms, p->maxThreadsPerMultiProcessor = threads_a_sm();
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = card->shared_block;
    p->sharedMemPerMultiprocessor = card->shared_sm, p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32, p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->textureAlignment = 512, p->l2CacheSize = 96 << 20, p->unifiedAddressing = p->managedMemory = 1;
    return cudaSuccess;
}
static int attribute(int wanted) { /* the driver's and the runtime's attributes have the same numbers */
    switch (wanted) {
    case cudaDevAttrMultiProcessorCount: return card->sms;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return card->shared_block;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return card->shared_sm;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrComputeCapabilityMajor: return card->major;
    case cudaDevAttrComputeCapabilityMinor: return card->minor;
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return threads_a_sm();
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxRegistersPerBlock: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 24;
    case cudaDevAttrClockRate: return 2490000;
    case cudaDevAttrMemoryClockRate: return 9001000;
    case cudaDevAttrGlobalMemoryBusWidth: return 384;
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: return 1;
    }
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr a, int d) { return *value = attribute(a), cudaSuccess; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute a, CUdevice d) { return *value = attribute(a), CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int number) { return *device = number, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *number) { return *number = count, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = current, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) { return *context = (CUcontext)16, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice d) { return *context = (CUcontext)16, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *f, int *active) { return *f = 0, *active = 1, CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute a, CUdeviceptr at) {
    if (a == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)value = at;
    else *(unsigned *)value = 0;
    return CUDA_SUCCESS;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *at) {
    memset(a, 0, sizeof *a);
    int there = on_device(at);
    a->type = there ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    *(there ? &a->devicePointer : &a->hostPointer) = (void *)at;
    return cudaSuccess;
}
static void *own(const char *name) { /* a function of this library */
    static void *self;
    Dl_info info;
    if (!self && dladdr(&handles, &info)) self = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return dlsym(self, name);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long f,
                                             enum cudaDriverEntryPointQueryResult *result) {
    *function = own(name);
    if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t error) { return error == 2 ? "cudaErrorMemoryAllocation" : "cudaError"; }
const char *cudaGetErrorString(cudaError_t error) { return error == 2 ? "out of memory" : "an error of the null GPU"; }
CUresult cuGetErrorString(CUresult error, const char **text) { return *text = "an error of the null GPU", CUDA_SUCCESS; }

/* Kernels and products ----------------------------------------------------------------------------------------- */

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **a, size_t shared, cudaStream_t s) {
    return counter[LAUNCHES]++, cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return counter[LAUNCHES]++, cudaSuccess; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void **a, void **more) {
    return counter[LAUNCHES]++, CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **a, void **more) { return counter[LAUNCHES]++, CUDA_SUCCESS; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 64, a->maxDynamicSharedSizeBytes = card->shared_block;
    int arch = card->major * 10 + card->minor;
    a->binaryVersion = a->ptxVersion = arch == 89 ? 86 : arch; /* torch's wheel has no kernels of 8.9's own */
    return cudaSuccess;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute a, CUfunction f) {
    *value = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 128 : 0;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int value) {
    int shared = a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    return shared && value > card->shared_block ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *m, const void *image) { return *m = handle(), CUDA_SUCCESS; }
CUresult cuModuleLoadDataEx(CUmodule *m, const void *i, unsigned n, CUjit_option *o, void **v) { return *m = handle(), CUDA_SUCCESS; }
CUresult cuModuleLoad(CUmodule *m, const char *name) { return *m = handle(), CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) { return *f = handle(), CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int b, size_t s) { return *n = 1, CUDA_SUCCESS; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) { return *n = 2, cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) {
    return *n = 2, cudaSuccess;
}

int cublasCreate_v2(void **h) { return *h = handle(), 0; }
int cublasGetMathMode(void *h, int *mode) { return *mode = 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { return *mode = 0; }
size_t cublasLtGetVersion(void) { return 130101; }
int cublasLtMatmulDescCreate(void **d, int a, int b) { return *d = handle(), 0; }
int cublasLtMatmulPreferenceCreate(void **p) { return *p = handle(), 0; }
int cublasLtMatrixLayoutCreate(void **l, int t, unsigned long r, unsigned long c, long ld) { return *l = handle(), 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *a, void *b, void *c, void *d, void *e, void *p, int n, void *r, int *found) {
    return *found = 1, 0;
}
const char *cublasGetStatusString(int status) { return "a status of the null GPU"; }
#define PRODUCT(name) int name(void) { return counter[PRODUCTS]++, 0; }
PRODUCT(cublasLtMatmul)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemmEx)

/* NVML, which torch loads by name: there is nothing that it could tell of this card ------------------------------- */

#define NOT_SUPPORTED(name) int name(void) { return 3; }
NOT_SUPPORTED(nvmlDeviceGetNvLinkRemoteDeviceType)
NOT_SUPPORTED(nvmlDeviceGetNvLinkRemotePciInfo_v2)
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = 13000, 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *found) { return *count = 0, 0; }
int nvmlDeviceGetGpuFabricInfoV(void *device, void *info) { return 0; } /* all zeros: the card has no fabric */
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) { return *device = handle(), 0; }
