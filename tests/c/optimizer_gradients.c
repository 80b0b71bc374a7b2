/* Gradients: regions at any offset, accumulated, of any type, in memory and on storage; what views
 * show of them, their norms, and that they end. */
#include "optimizer.h"

#include <float.h>
#include <math.h>

enum { ID = 5, NONE = 6, OFFSET = 300050, LEN = 100003 };

static const uint64_t NUMEL = 900001;

static tsw_optimizer *new_store(tsw_engine *engine, const char *place, const char *type)
{
    tsw_optimizer *optimizer;
    check(open_store(engine, &optimizer, "store", "new", "gradients", place, "gradient_dtype", type,
                     NULL),
          "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    check(tsw_optimizer_add_parameter(optimizer, ID, NULL, NUMEL), "parameter");
    check(tsw_optimizer_add_parameter(optimizer, NONE, NULL, 10), "parameter");
    return optimizer;
}

static tsw_status put(tsw_optimizer *optimizer, uint64_t offset, const void *values, uint64_t numel,
                      uint32_t dtype, uint32_t flags)
{
    const tsw_tensor gradient = {
        .data = (void *)(uintptr_t)values, .numel = numel, .dtype = dtype, .flags = flags};
    return tsw_optimizer_swap_out_gradients(optimizer, ID, &offset, &gradient, 1);
}

/* Runs a step that changes nothing, and compares the gradient in the view; NULL expects none. */
static void expect_gradient(tsw_optimizer *optimizer, const float *expected, int line)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;

    expect_status(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK, "step_begin", __FILE__,
                  line);
    while ((status = tsw_optimizer_step_next(optimizer, &view)) == TSW_OK) {
        const int none = view.id == NONE || expected == NULL;
        expect_true((view.gradient.data == NULL) == none, "no gradient, no view", __FILE__, line);
        if (!none && view.gradient.data != NULL) {
            const float *seen = view.gradient.data;
            uint64_t i = 0;
            expect_true(view.gradient.numel == NUMEL && view.gradient.dtype == TSW_F32, "f32",
                        __FILE__, line);
            while (i < NUMEL && memcmp(&seen[i], &expected[i], sizeof *seen) == 0)
                i++;
            if (i < NUMEL)
                printf("element %llu is %a instead of %a\n", (unsigned long long)i, seen[i],
                       expected[i]);
            expect_true(i == NUMEL, "the gradient is as swapped out", __FILE__, line);
        }
        expect_status(tsw_optimizer_step_done(optimizer, view.id, 0), TSW_OK, "done", __FILE__,
                      line);
    }
    expect_status(status, TSW_END, "step_next", __FILE__, line);
    expect_status(tsw_optimizer_step_end(optimizer), TSW_OK, "step_end", __FILE__, line);
}

static void regions(tsw_optimizer *optimizer)
{
    float *expected = new_floats(NUMEL), *values = new_values(1, LEN), *again = new_values(2, LEN);

    /* One region at an offset that no alignment divides; the rest is zero. */
    EXPECT_STATUS(put(optimizer, OFFSET, values, LEN, TSW_F32, 0), TSW_OK);
    memcpy(expected + OFFSET, values, LEN * sizeof *values);
    expect_gradient(optimizer, expected, __LINE__);
    expect_gradient(optimizer, NULL, __LINE__); /* it ended with the step */

    /* The caller's memory is its own again: what is done to it is not seen. Micro-batches add up
     * over several backward passes; a region without the flag replaces. */
    memset(expected, 0, NUMEL * sizeof *expected);
    for (int batch = 0; batch < 3; batch++) {
        EXPECT_STATUS(tsw_optimizer_pre_backward(optimizer), TSW_OK);
        EXPECT_STATUS(put(optimizer, OFFSET, values, LEN, TSW_F32, TSW_TENSOR_ACCUMULATE), TSW_OK);
        EXPECT_STATUS(put(optimizer, 7, again, LEN, TSW_F32, 0), TSW_OK);
        EXPECT_STATUS(tsw_optimizer_post_backward(optimizer), TSW_OK);
        for (uint64_t i = 0; i < LEN; i++) {
            expected[OFFSET + i] += values[i];
            expected[7 + i] = again[i];
            values[i] = value_of((uint64_t)batch + 3, i);
            again[i] = value_of((uint64_t)batch + 13, i);
        }
    }
    EXPECT_STATUS(tsw_optimizer_flush_gradients(optimizer), TSW_OK);
    expect_gradient(optimizer, expected, __LINE__);

    /* Overlapping regions in one list: in the order of the list. */
    {
        const uint64_t offsets[2] = {100, 101};
        const tsw_tensor tensors[2] = {floats(values, 10), floats(again, 10)};
        EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, ID, offsets, tensors, 2),
                      TSW_OK);
        memset(expected, 0, NUMEL * sizeof *expected);
        memcpy(expected + 100, values, 10 * sizeof *values);
        memcpy(expected + 101, again, 10 * sizeof *again);
        expect_gradient(optimizer, expected, __LINE__);
    }

    /* Discarded, or ended by an abort: gone. */
    EXPECT_STATUS(put(optimizer, 0, values, LEN, TSW_F32, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_discard_gradients(optimizer), TSW_OK);
    expect_gradient(optimizer, NULL, __LINE__);
    EXPECT_STATUS(put(optimizer, 0, values, LEN, TSW_F32, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_abort(optimizer), TSW_OK);
    expect_gradient(optimizer, NULL, __LINE__);
    free(values);
    free(again);
    free(expected);
}

/* One by one: a gradient ends with swap_out_state and stays with release_state. */
static void ends_with_the_record(tsw_optimizer *optimizer)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    float value = 2;

    EXPECT_STATUS(put(optimizer, 11, &value, 1, TSW_F32, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, ID, TSW_NO_PARAMETER, &view), TSW_OK);
    EXPECT(view.gradient.data != NULL && ((float *)view.gradient.data)[11] > 1);
    EXPECT_ERROR(put(optimizer, 11, &value, 1, TSW_F32, 0), TSW_ERR_BUSY, "5");
    EXPECT_STATUS(tsw_optimizer_release_state(optimizer, ID), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, ID, TSW_NO_PARAMETER, &view), TSW_OK);
    EXPECT(view.gradient.data != NULL && ((float *)view.gradient.data)[11] > 1);
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, ID, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, ID, TSW_NO_PARAMETER, &view), TSW_OK);
    EXPECT(view.gradient.data == NULL);
    EXPECT_STATUS(tsw_optimizer_release_state(optimizer, ID), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
}

/* Bit patterns of 16-bit types and what they are. */
static void narrow_types(tsw_optimizer *optimizer)
{
    static const uint16_t f16[6] = {0x3c00, 0xc000, 0x3555, 0x0001, 0x7bff, 0x8000};
    static const uint16_t bf16[6] = {0x3f80, 0xc000, 0x3eab, 0x0001, 0x7f7f, 0x8000};
    static const float of_f16[6] = {1, -2, 0x1.554p-2f, 0x1p-24f, 65504, -0.0f};
    static const float of_bf16[6] = {1, -2, 0x1.56p-2f, 0x1p-133f, 0x1.fep127f, -0.0f};
    float *expected = new_floats(NUMEL);

    EXPECT_STATUS(put(optimizer, OFFSET, f16, 6, TSW_F16, 0), TSW_OK);
    memcpy(expected + OFFSET, of_f16, sizeof of_f16);
    expect_gradient(optimizer, expected, __LINE__);

    EXPECT_STATUS(put(optimizer, OFFSET, bf16, 6, TSW_BF16, 0), TSW_OK);
    memcpy(expected + OFFSET, of_bf16, sizeof of_bf16);
    expect_gradient(optimizer, expected, __LINE__);

    /* Mixed. */
    EXPECT_STATUS(put(optimizer, 1, bf16, 3, TSW_BF16, 0), TSW_OK);
    EXPECT_STATUS(put(optimizer, OFFSET, f16, 6, TSW_F16, 0), TSW_OK);
    memset(expected, 0, NUMEL * sizeof *expected);
    memcpy(expected + 1, of_bf16, 3 * sizeof *of_bf16);
    memcpy(expected + OFFSET, of_f16, sizeof of_f16);
    expect_gradient(optimizer, expected, __LINE__);
    free(expected);
}

static void norms(tsw_optimizer *optimizer)
{
    float values[5] = {3, -4, INFINITY, NAN, -INFINITY}, *many = new_values(9, NUMEL);
    double sum = -1, exact = 0;
    uint64_t nonfinite = 7;

    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, ID, &sum, &nonfinite), TSW_OK);
    EXPECT(!(sum < 0) && !(sum > 0) && nonfinite == 0); /* no gradient */
    EXPECT_STATUS(put(optimizer, OFFSET, values, 5, TSW_F32, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, ID, &sum, &nonfinite), TSW_OK);
    EXPECT(fabs(sum - 25) < 1e-12 && nonfinite == 3);
    EXPECT_STATUS(put(optimizer, 0, many, NUMEL, TSW_F32, 0), TSW_OK);
    for (uint64_t i = 0; i < NUMEL; i++)
        exact += (double)many[i] * (double)many[i];
    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, ID, &sum, &nonfinite), TSW_OK);
    EXPECT(fabs(sum - exact) < exact * 1e-10 && nonfinite == 0);
    EXPECT_STATUS(tsw_optimizer_discard_gradients(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, ID, &sum, &nonfinite), TSW_OK);
    EXPECT(!(sum > 0) && nonfinite == 0);
    free(many);
}

int main(void)
{
    static const char *const places[3] = {"memory", "disk", "auto"};
    tsw_engine *engine = new_engine(NULL, NULL);

    for (int i = 0; i < 3; i++) {
        tsw_optimizer *optimizer = new_store(engine, places[i], i == 2 ? "f32" : "auto");
        const int failures_before = failures;
        regions(optimizer);
        ends_with_the_record(optimizer);
        narrow_types(optimizer);
        norms(optimizer);
        tsw_optimizer_free(optimizer);
        if (failures > failures_before)
            printf("... with gradients=%s\n", places[i]);
    }
    tsw_engine_free(engine);
    return result();
}
