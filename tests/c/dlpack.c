/* Tensors of other frameworks: what is taken, what is refused, and with which words. */
#include "test.h"

/* From dlpack.h, which need not be installed. */
typedef struct {
    void *data;
    struct {
        int32_t device_type, device_id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

enum { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3 };
enum { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4, kDLComplex = 5, kDLBool = 6 };
enum { kDLFloat8_e4m3fn = 10, kDLFloat8_e4m3fnuz = 11, kDLFloat8_e5m2 = 12 };

static float values[24];

static DLTensor dl(int32_t ndim, int64_t *shape, int64_t *strides)
{
    DLTensor tensor = {0};
    tensor.data = values;
    tensor.device.device_type = kDLCPU;
    tensor.ndim = ndim;
    tensor.dtype.code = kDLFloat;
    tensor.dtype.bits = 32;
    tensor.dtype.lanes = 1;
    tensor.shape = shape;
    tensor.strides = strides;
    return tensor;
}

static void expect_dtype(uint8_t code, uint8_t bits, uint32_t dtype)
{
    int64_t shape[1] = {2};
    DLTensor from = dl(1, shape, NULL);
    tsw_tensor tensor;
    from.dtype.code = code;
    from.dtype.bits = bits;
    EXPECT_STATUS(tsw_tensor_from_dlpack(&from, &tensor), TSW_OK);
    EXPECT(tensor.dtype == dtype && tsw_dtype_size(dtype) * 8 == bits);
}

static void expect_refused(const DLTensor *from, tsw_status expected, const char *words)
{
    static const tsw_tensor zero;
    tsw_tensor tensor = {.numel = 7, .reserved = {1, 2, 3}};
    EXPECT_ERROR(tsw_tensor_from_dlpack(from, &tensor), expected, words);
    EXPECT(memcmp(&tensor, &zero, sizeof tensor) == 0);
}

static void taken(void)
{
    int64_t shape[3] = {2, 3, 4}, compact[3] = {12, 4, 1}, one[3] = {2, 1, 4}, odd[3] = {4, 99, 1};
    int64_t empty[2] = {0, 5};
    DLTensor from = dl(3, shape, NULL);
    tsw_tensor tensor;

    EXPECT_STATUS(tsw_tensor_from_dlpack(&from, &tensor), TSW_OK);
    EXPECT(tensor.data == values && tensor.numel == 24 && tensor.dtype == TSW_F32);
    EXPECT(tensor.flags == 0 && tensor.file_offset == 0 && tensor.user_tag == 0);
    from.strides = compact;
    EXPECT_STATUS(tsw_tensor_from_dlpack(&from, &tensor), TSW_OK);
    from = dl(3, one, odd); /* the stride of a dimension of one element does not matter */
    EXPECT_STATUS(tsw_tensor_from_dlpack(&from, &tensor), TSW_OK);
    EXPECT(tensor.numel == 8);
    from = dl(0, NULL, NULL); /* a scalar */
    from.byte_offset = 4;
    EXPECT_STATUS(tsw_tensor_from_dlpack(&from, &tensor), TSW_OK);
    EXPECT(tensor.numel == 1 && tensor.data == values + 1);
    from = dl(2, empty, compact);
    from.data = NULL;
    EXPECT_STATUS(tsw_tensor_from_dlpack(&from, &tensor), TSW_OK);
    EXPECT(tensor.numel == 0 && tensor.data == NULL);
    from = dl(3, shape, NULL);
    from.device.device_type = kDLCUDAHost;
    EXPECT_STATUS(tsw_tensor_from_dlpack(&from, &tensor), TSW_OK);

    expect_dtype(kDLInt, 8, TSW_I8);
    expect_dtype(kDLInt, 64, TSW_I64);
    expect_dtype(kDLUInt, 16, TSW_U16);
    expect_dtype(kDLFloat, 16, TSW_F16);
    expect_dtype(kDLFloat, 64, TSW_F64);
    expect_dtype(kDLBfloat, 16, TSW_BF16);
    expect_dtype(kDLBool, 8, TSW_BOOL);
    expect_dtype(kDLFloat8_e4m3fn, 8, TSW_F8_E4M3);
    expect_dtype(kDLFloat8_e5m2, 8, TSW_F8_E5M2);
}

static void refused(void)
{
    int64_t shape[3] = {2, 3, 4}, transposed[3] = {1, 2, 6}, negative[3] = {2, -3, 4};
    int64_t huge[3] = {INT64_MAX, INT64_MAX, 4}, large[1] = {INT64_MAX};
    DLTensor from = dl(3, shape, transposed);

    expect_refused(&from, TSW_ERR_UNSUPPORTED, "stride");
    from = dl(3, shape, NULL);
    from.device.device_type = kDLCUDA;
    expect_refused(&from, TSW_ERR_UNSUPPORTED, "device");
    from = dl(3, shape, NULL);
    from.dtype.lanes = 4;
    expect_refused(&from, TSW_ERR_UNSUPPORTED, "lanes");
    from.dtype.lanes = 1;
    from.dtype.code = kDLComplex;
    expect_refused(&from, TSW_ERR_UNSUPPORTED, "code");
    from.dtype.code = kDLFloat8_e4m3fnuz;
    from.dtype.bits = 8;
    expect_refused(&from, TSW_ERR_UNSUPPORTED, "code");
    from.dtype.code = kDLInt;
    from.dtype.bits = 4;
    expect_refused(&from, TSW_ERR_UNSUPPORTED, "bits");
    from = dl(3, negative, NULL);
    expect_refused(&from, TSW_ERR_INVALID_ARGUMENT, "negative");
    from = dl(3, huge, NULL);
    expect_refused(&from, TSW_ERR_INVALID_ARGUMENT, "too many");
    from = dl(1, large, NULL);
    expect_refused(&from, TSW_ERR_INVALID_ARGUMENT, "too many");
    from = dl(-1, shape, NULL);
    expect_refused(&from, TSW_ERR_INVALID_ARGUMENT, "dimensions");
    from = dl(INT32_MAX, shape, NULL);
    expect_refused(&from, TSW_ERR_INVALID_ARGUMENT, "dimensions");
    from = dl(3, NULL, NULL);
    expect_refused(&from, TSW_ERR_NULL_ARGUMENT, "shape");
    from = dl(3, shape, NULL);
    from.data = NULL;
    expect_refused(&from, TSW_ERR_NULL_ARGUMENT, "data");
    from = dl(3, shape, NULL);
    from.byte_offset = UINT64_MAX;
    expect_refused(&from, TSW_ERR_INVALID_ARGUMENT, "byte_offset");
}

int main(void)
{
    taken();
    refused();
    return result();
}
