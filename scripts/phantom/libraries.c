/* cuBLAS and cuDNN: handles and descriptors, one engine for everything, no workspace of their own. */

#include "phantom.h"

enum { HEURISTIC = 96 };     /* sizeof(cublasLtMatmulHeuristicResult_t) */
enum { INT64 = 3, INT32 = 23 }; /* of cudnnBackendAttributeType_t */
enum { NUMERICAL_NOTES = 1303, BEHAVIOUR_NOTES = 1305, KNOBS = 302 };

int cublasCreate_v2(void **made) { return *made = phantom_handle(), 0; }
int cublasGetMathMode(void *handle, int *mode) { return *mode = 0, 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0, 0; }
size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtCreate(void **made) { return *made = phantom_handle(), 0; }
int cublasLtMatmulDescCreate(void **made, int compute, int scale) {
    return *made = phantom_handle(), 0;
}
int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t cols, int64_t lead) {
    return *made = phantom_handle(), 0;
}
int cublasLtMatmulPreferenceCreate(void **made) { return *made = phantom_handle(), 0; }

int cublasLtMatmulAlgoGetHeuristic(
    void *handle,
    void *operation,
    void *a,
    void *b,
    void *c,
    void *d,
    void *preference,
    int wanted,
    char *results,
    int *found) {
    memset(results, 0, (size_t)HEURISTIC * wanted);
    return *found = 1, 0;
}

int cudnnCreate(void **made) { return *made = phantom_handle(), 0; }
size_t cudnnGetVersion(void) { return 91900; }
size_t cudnnGetCudartVersion(void) { return 13000; }
int cudnnGetProperty(int which, int *value) { return *value = which == 0 ? 9 : which == 1 ? 19 : 0, 0; }
const char *cudnnGetErrorString(int error) { return "an error of the phantom"; }

void cudnnGetLastErrorString(char *text, size_t size) {
    if (size) *text = 0;
}

int cudnnBackendCreateDescriptor(int type, void **made) { return *made = phantom_handle(), 0; }

int cudnnBackendGetAttribute(
    void *descriptor, int name, int type, int64_t room, int64_t *count, void *values) {
    int is_list = name == NUMERICAL_NOTES || name == BEHAVIOUR_NOTES || name == KNOBS;
    if (count) *count = is_list ? 0 : 1;
    if (values && room > 0 && type == INT64) *(int64_t *)values = 0;
    if (values && room > 0 && type == INT32) *(int32_t *)values = 0;
    return 0;
}
