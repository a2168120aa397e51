/* The CUDA runtime's entry points that torch calls: one kind of device, and kernels that do nothing.
   What is not here and torch imports is generated: it does nothing and succeeds. */

#define _GNU_SOURCE
#include "phantom.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>
#undef cudaGetDeviceProperties

enum { PROCESSORS = 132, SHARED = 232448, THREADS = 1024, REGISTERS = 65536 }; /* of an H100 */

/* ── devices ─────────────────────────────────────────────────────────────────────────────── */

cudaError_t cudaGetDeviceCount(int *count) { return *count = phantom_devices(), cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = phantom_device, cudaSuccess; }

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= phantom_devices()) return cudaErrorInvalidDevice;
    phantom_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *told, int device) {
    const char *name = getenv("PHANTOM_NAME");
    memset(told, 0, sizeof *told);
    strncpy(told->name, name ? name : "phantom", sizeof told->name - 1);
    told->totalGlobalMem = phantom_capacity();
    told->major = 9;
    told->warpSize = 32;
    told->multiProcessorCount = PROCESSORS;
    told->maxThreadsPerBlock = THREADS;
    told->maxThreadsPerMultiProcessor = 2 * THREADS;
    told->maxThreadsDim[0] = told->maxThreadsDim[1] = THREADS;
    told->maxThreadsDim[2] = 64;
    told->maxGridSize[0] = 2147483647;
    told->maxGridSize[1] = told->maxGridSize[2] = 65535;
    told->regsPerBlock = told->regsPerMultiprocessor = REGISTERS;
    told->sharedMemPerBlock = 49152;
    told->sharedMemPerBlockOptin = SHARED;
    told->sharedMemPerMultiprocessor = SHARED + 1024;
    told->unifiedAddressing = told->managedMemory = told->canMapHostMemory = 1;
    told->pciBusID = 1 + device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    struct cudaDeviceProp told;
    cudaGetDeviceProperties(&told, device);
    switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = told.major; break;
    case cudaDevAttrMultiProcessorCount: *value = told.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = told.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = told.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = told.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = told.regsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = told.maxGridSize[0]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = told.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = told.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED + 1024; break;
    default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:%02x:00.0", 1 + device);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int to) { return *can = 1, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
const char *cudaGetErrorName(cudaError_t error) { return "phantom"; }

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the phantom";
}

/* ── memory ──────────────────────────────────────────────────────────────────────────────── */

cudaError_t cudaMalloc(void **base, size_t size) {
    *base = NULL;
    if (phantom_account(size)) return cudaErrorMemoryAllocation;
    *base = phantom_reserve(size);
    if (!*base) return phantom_release(phantom_device, size), cudaErrorMemoryAllocation;
    phantom_note(ON_DEVICE, *base, size, phantom_device);
    return cudaSuccess;
}

cudaError_t cudaFree(void *base) {
    struct block found = phantom_find(ON_DEVICE, base);
    if (!found.base) return cudaSuccess;
    phantom_release(found.device, found.size);
    phantom_forget(ON_DEVICE, found.base, found.size);
    munmap(found.base, found.size);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **base, size_t size, unsigned flags) {
    *base = phantom_reserve(size);
    if (!*base) return cudaErrorMemoryAllocation;
    phantom_note(PINNED, *base, size, phantom_device);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *base) {
    struct block found = phantom_find(PINNED, base);
    if (!found.base) return cudaSuccess;
    phantom_forget(PINNED, found.base, found.size);
    munmap(found.base, found.size);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *total = phantom_capacity();
    *left = *total - phantom_used();
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    phantom_copy(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy(to, from, size, kind);
}

cudaError_t cudaMemcpyPeerAsync(
    void *to, int there, const void *from, int here, size_t size, cudaStream_t stream) {
    return cudaMemcpy(to, from, size, cudaMemcpyDefault);
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream) {
    if (size <= MOVED) memset(at, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *at, int value, size_t size) {
    return cudaMemsetAsync(at, value, size, NULL);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *told, const void *pointer) {
    struct block device = phantom_find(ON_DEVICE, pointer), host = phantom_find(PINNED, pointer);
    memset(told, 0, sizeof *told);
    told->type = device.base ? cudaMemoryTypeDevice
                 : host.base ? cudaMemoryTypeHost
                             : cudaMemoryTypeUnregistered;
    told->device = device.device;
    told->devicePointer = (void *)pointer;
    told->hostPointer = host.base ? (void *)pointer : NULL;
    return cudaSuccess;
}

/* ── streams and events ──────────────────────────────────────────────────────────────────── */

cudaError_t cudaStreamCreate(cudaStream_t *made) { return *made = phantom_handle(), cudaSuccess; }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *made, unsigned flags, int priority) {
    return cudaStreamCreate(made);
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *found) {
    return *found = 0, cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *found) {
    return *found = cudaStreamCaptureStatusNone, cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *made) { return *made = phantom_handle(), cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *made, unsigned flags) {
    return cudaEventCreate(made);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    return *milliseconds = 1, cudaSuccess; /* no time passes on it */
}

/* ── kernels ─────────────────────────────────────────────────────────────────────────────── */

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *told, const void *kernel) {
    memset(told, 0, sizeof *told);
    told->maxThreadsPerBlock = THREADS;
    told->numRegs = 32;
    told->binaryVersion = told->ptxVersion = 90;
    told->maxDynamicSharedSizeBytes = SHARED;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *count, const void *kernel, int threads, size_t memory, unsigned flags) {
    return *count = 2, cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char place[1 << 20];
    return *address = place, cudaSuccess;
}

void **__cudaRegisterFatBinary(void *binary) { return phantom_handle(); }
char __cudaInitModule(void **binary) { return 1; }

cudaError_t __cudaGetKernel(void **kernel, const void *function) {
    return *kernel = (void *)function, cudaSuccess;
}

/* ── virtual memory: what `expandable_segments` of torch's allocator asks the driver for ─── */

struct chunk {
    size_t size;
    int device;
};

int cuMemCreate(void **made, size_t size, const void *properties, unsigned long long flags) {
    if (phantom_account(size)) return cudaErrorMemoryAllocation;
    struct chunk *chunk = malloc(sizeof *chunk);
    *chunk = (struct chunk){size, phantom_device};
    *made = chunk;
    return 0;
}

int cuMemRelease(void *which) {
    struct chunk *chunk = which;
    phantom_release(chunk->device, chunk->size);
    free(chunk);
    return 0;
}

int cuMemAddressReserve(
    uint64_t *base, size_t size, size_t alignment, uint64_t wish, unsigned long long flags) {
    *base = (uint64_t)phantom_reserve(size);
    return *base ? 0 : cudaErrorMemoryAllocation;
}

int cuMemAddressFree(uint64_t base, size_t size) { return munmap((void *)base, size), 0; }

int cuMemMap(uint64_t base, size_t size, size_t offset, void *which, unsigned long long flags) {
    return phantom_note(ON_DEVICE, (void *)base, size, ((struct chunk *)which)->device), 0;
}

int cuMemUnmap(uint64_t base, size_t size) {
    phantom_forget(ON_DEVICE, (void *)base, size);
    return madvise((void *)base, size, MADV_DONTNEED), 0;
}

int cuMemGetAllocationGranularity(size_t *size, const void *properties, int option) {
    return *size = 2 << 20, 0;
}

static int succeed(void) { return 0; }

cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name,
    void **found,
    unsigned version,
    unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    *found = dlsym(RTLD_DEFAULT, name);
    if (!*found && driver) *found = dlsym(driver, name);
    if (!*found) *found = (void *)succeed;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
