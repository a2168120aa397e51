/* libcuda.so.1: what Triton's launcher asks the driver for. */

#include "phantom.h"

static char context[64];

int cuGetErrorString(int error, const char **text) { return *text = "phantom", 0; }
int cuGetErrorName(int error, const char **text) { return *text = "phantom", 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuCtxGetCurrent(void **found) { return *found = context, 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuDevicePrimaryCtxRetain(void **found, int device) { return *found = context, 0; }
int cuModuleLoadData(void **made, const void *image) { return *made = calloc(1, 64), 0; }
int cuModuleGetFunction(void **made, void *module, const char *name) {
    return *made = calloc(1, 64), 0;
}
int cuFuncGetModule(void **found, void *function) { return *found = context, 0; }
int cuPointerGetAttribute(void *told, int which, uint64_t pointer) {
    return *(uint64_t *)told = pointer, 0;
}
int cuOccupancyMaxActiveClusters(int *count, void *function, void *launch) { return *count = 16, 0; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0;
    return *active = 1, 0;
}

int cuDeviceGetAttribute(int *value, int which, int device) {
    switch (which) { /* CUdevice_attribute, of an H100 */
    case 1: *value = 1024; break;    /* threads of a block */
    case 8: *value = 49152; break;   /* shared memory of a block */
    case 10: *value = 32; break;     /* threads of a warp */
    case 12: *value = 65536; break;  /* registers of a block */
    case 16: *value = 132; break;    /* multiprocessors */
    case 39: *value = 2048; break;   /* threads of a multiprocessor */
    case 75: *value = 9; break;      /* compute capability */
    case 82: *value = 65536; break;  /* registers of a multiprocessor */
    case 97: *value = 232448; break; /* shared memory of a block, on request */
    default: *value = 0;
    }
    return 0;
}

int cuFuncGetAttribute(int *value, int which, void *function) {
    return *value = which == 0 ? 1024 : which == 4 ? 32 : 0, 0; /* threads; registers */
}
