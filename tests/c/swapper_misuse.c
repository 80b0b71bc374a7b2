/* The swapper used wrongly: a clear status each time, and nothing of it changes what was staged. */
#include "test.h"

enum { LEN = 64 << 10, NUMEL = 1000 };

static tsw_tensor floats(float *values, uint64_t numel)
{
    return (tsw_tensor){.data = values, .numel = numel, .dtype = TSW_F32};
}

static void buffers_given_wrongly(tsw_engine *engine)
{
    tsw_engine *other = new_engine(NULL, NULL);
    tsw_swapper *swapper, *second;
    tsw_buffer *mine[3], *foreign, *twice[2], *missing[2], *back[3];
    size_t count;

    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    check(tsw_swapper_new(engine, NULL, &second), "swapper");
    for (int i = 0; i < 3; i++)
        check(tsw_buffer_new(engine, LEN, &mine[i]), "buffer");
    check(tsw_buffer_new(other, LEN, &foreign), "buffer");
    twice[0] = twice[1] = mine[0];
    missing[0] = mine[0];
    missing[1] = NULL;

    EXPECT(tsw_swapper_has_buffers(swapper) == 0);
    EXPECT_STATUS(tsw_swapper_add_buffers(swapper, mine, 0, TSW_F32), TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_swapper_add_buffers(swapper, mine, 3, 16), TSW_ERR_INVALID_ARGUMENT);
    EXPECT_ERROR(tsw_swapper_add_buffers(swapper, twice, 2, TSW_F32), TSW_ERR_INVALID_ARGUMENT,
                 "buffers[1]");
    EXPECT_ERROR(tsw_swapper_add_buffers(swapper, missing, 2, TSW_F32), TSW_ERR_NULL_ARGUMENT,
                 "buffers[1]");
    EXPECT_ERROR(tsw_swapper_add_buffers(swapper, &foreign, 1, TSW_F32), TSW_ERR_INVALID_ARGUMENT,
                 "engine");
    EXPECT_STATUS(tsw_swapper_add_buffers(swapper, mine, SIZE_MAX, TSW_F32), TSW_ERR_NO_MEMORY);
    EXPECT(tsw_swapper_has_buffers(swapper) == 0);

    /* None of these was kept by the calls that failed. */
    EXPECT_STATUS(tsw_swapper_add_buffers(swapper, mine, 2, TSW_F32), TSW_OK);
    EXPECT(tsw_swapper_has_buffers(swapper) == 1);
    EXPECT_STATUS(tsw_swapper_add_buffers(swapper, mine + 2, 1, TSW_F32), TSW_ERR_BUSY);
    EXPECT_ERROR(tsw_swapper_add_buffers(second, mine + 1, 2, TSW_F32), TSW_ERR_BUSY,
                 "another swapper");
    EXPECT_STATUS(tsw_swapper_add_buffers(second, mine + 2, 1, TSW_F32), TSW_OK);
    EXPECT_STATUS(tsw_swapper_release_buffers(swapper, back, 3, &count), TSW_OK);
    EXPECT(count == 2 && back[0] == mine[0] && back[1] == mine[1]);
    EXPECT_STATUS(tsw_swapper_release_buffers(swapper, NULL, 0, &count), TSW_OK);
    EXPECT(count == 0);

    tsw_swapper_free(swapper);
    tsw_swapper_free(second);
    for (int i = 0; i < 3; i++)
        tsw_buffer_free(mine[i]);
    tsw_buffer_free(foreign);
    tsw_engine_free(other);
}

static void tensors_given_wrongly(tsw_swapper *swapper, float *values)
{
    tsw_tensor tensors[2] = {floats(values, NUMEL), floats(values, NUMEL)};
    const char *paths[2] = {"good", "bad"}, *one[2] = {"good", "good"};

    tensors[1].dtype = TSW_BF16;
    EXPECT_ERROR(tsw_swapper_swap_out(swapper, tensors, paths, 2), TSW_ERR_DTYPE_MISMATCH, "bf16");
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, tensors, paths, 2), TSW_ERR_DTYPE_MISMATCH);
    tensors[1] = tensors[0];
    tensors[1].reserved[1] = 1;
    EXPECT_ERROR(tsw_swapper_swap_out(swapper, tensors, paths, 2), TSW_ERR_INVALID_ARGUMENT,
                 "tensors[1]");
    tensors[1] = tensors[0];
    tensors[1].file_offset = 100;
    EXPECT_ERROR(tsw_swapper_swap_out(swapper, tensors, one, 2), TSW_ERR_INVALID_ARGUMENT,
                 "overlap");
    paths[1] = "";
    EXPECT_STATUS(tsw_swapper_swap_out(swapper, tensors, paths, 2), TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_swapper_swap_out(swapper, tensors, paths, SIZE_MAX), TSW_ERR_NO_MEMORY);
    /* A list is validated whole: nothing of it was staged. */
    EXPECT_STATUS(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_OK);
    EXPECT(file_len("good") == -1 && file_len("bad") == -1);
    EXPECT_STATUS(tsw_swapper_swap_out(swapper, NULL, NULL, 0), TSW_OK);
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, NULL, NULL, 0), TSW_OK);
}

/* The metrics of an engine are those of its swappers too, while they are there. */
static void metrics(tsw_engine *engine)
{
    static const char line[] = "tensorswap_swapper_out_tensors_total{swapper=\"";
    const size_t cap = tsw_engine_prometheus(engine, NULL, 0) + 1024;
    char *text = check_memory(malloc(cap));

    EXPECT(tsw_engine_prometheus(engine, text, cap) == strlen(text));
    EXPECT(strstr(text, line) != NULL && strstr(text, "# TYPE tensorswap_bytes_total") != NULL);
    free(text);
}

static void figures(tsw_swapper *swapper, float *values)
{
    tsw_swapper_stats stats = {.struct_size = sizeof stats};
    tsw_timer timer = {.struct_size = sizeof timer};
    const tsw_tensor tensor = floats(values, NUMEL);
    const char *path = "figures", *names[8] = {NULL};
    size_t count;

    EXPECT_STATUS(tsw_swapper_swap_out(swapper, &tensor, &path, 1), TSW_OK);
    EXPECT_STATUS(tsw_swapper_submit(swapper), TSW_OK);
    EXPECT_STATUS(tsw_swapper_submit(swapper), TSW_OK); /* nothing left to do */
    EXPECT_STATUS(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_OK);
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, &tensor, &path, 1), TSW_OK);
    EXPECT_STATUS(tsw_swapper_get_stats(swapper, &stats), TSW_OK);
    EXPECT(stats.struct_size == sizeof stats && stats.reserved == 0);
    EXPECT(stats.swap_out_tensors_count == 1 && stats.swap_out_bytes == NUMEL * sizeof(float));
    EXPECT(stats.swap_in_tensors_count == 1 && stats.swap_in_elements_count == NUMEL);
    EXPECT(stats.buffers_count == 2 && stats.errors_count == 0);

    count = tsw_swapper_timer_names(swapper, names, 8);
    EXPECT(count >= 3 && count <= 8 && names[count - 1] != NULL);
    for (size_t i = 0; i < count && i < 8; i++) {
        EXPECT_STATUS(tsw_swapper_get_timer(swapper, names[i], &timer), TSW_OK);
        EXPECT(timer.count > 0 && timer.min_ns <= timer.p50_ns && timer.p50_ns <= timer.max_ns);
    }
    names[0] = NULL;
    EXPECT(tsw_swapper_timer_names(swapper, names, 0) == count && names[0] == NULL);
    EXPECT_ERROR(tsw_swapper_get_timer(swapper, "no_such_timer", &timer),
                 TSW_ERR_INVALID_ARGUMENT, "no_such_timer");
    EXPECT(timer.count == 0);

    /* The rule of struct_size. */
    stats.struct_size = 0;
    EXPECT_ERROR(tsw_swapper_get_stats(swapper, &stats), TSW_ERR_INVALID_ARGUMENT, "struct_size");
    stats.struct_size = 1;
    EXPECT_STATUS(tsw_swapper_get_stats(swapper, &stats), TSW_ERR_INVALID_ARGUMENT);
    stats.struct_size = UINT32_MAX;
    EXPECT_STATUS(tsw_swapper_get_stats(swapper, &stats), TSW_ERR_INVALID_ARGUMENT);
    memset(&stats, 0x55, sizeof stats);
    stats.struct_size = offsetof(tsw_swapper_stats, swap_out_elements_count);
    EXPECT_STATUS(tsw_swapper_get_stats(swapper, &stats), TSW_OK); /* an older caller */
    EXPECT(stats.swap_out_tensors_count == 1);
    EXPECT(stats.swap_out_elements_count == UINT64_C(0x5555555555555555));
}

static void no_buffers(tsw_engine *engine, float *values)
{
    const tsw_tensor tensor = floats(values, NUMEL);
    const char *path = "no-buffers";
    tsw_swapper *swapper;

    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    EXPECT_STATUS(tsw_swapper_swap_out(swapper, &tensor, &path, 1), TSW_ERR_NO_BUFFERS);
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, &tensor, &path, 1), TSW_ERR_NO_BUFFERS);
    EXPECT_STATUS(tsw_swapper_swap_out(swapper, NULL, NULL, 0), TSW_OK);
    EXPECT_STATUS(tsw_swapper_flush(swapper, 0), TSW_OK); /* nothing to wait for */
    EXPECT_STATUS(tsw_swapper_submit(swapper), TSW_OK);
    tsw_swapper_free(swapper);
}

/* After a shutdown everything is refused, and all can still be freed. */
static void after_shutdown(float *values)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    const tsw_tensor tensor = floats(values, NUMEL);
    const char *path = "shutdown";
    tsw_swapper *swapper;
    tsw_buffer *buffer, *none;

    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    check(tsw_buffer_new(engine, LEN, &buffer), "buffer");
    check(tsw_swapper_add_buffers(swapper, &buffer, 1, TSW_F32), "add");
    EXPECT_STATUS(tsw_engine_shutdown(engine, TSW_WAIT_FOREVER), TSW_OK);
    EXPECT_STATUS(tsw_engine_shutdown(engine, 0), TSW_OK);
    EXPECT_STATUS(tsw_buffer_new(engine, LEN, &none), TSW_ERR_SHUT_DOWN);
    EXPECT_STATUS(swap_out(engine, tensor, path), TSW_ERR_SHUT_DOWN);
    EXPECT_STATUS(tsw_swapper_swap_out(swapper, &tensor, &path, 1), TSW_ERR_SHUT_DOWN);
    tsw_engine_free(engine);
    tsw_swapper_free(swapper);
    tsw_buffer_free(buffer);
}

int main(void)
{
    float *values = check_memory(calloc(NUMEL, sizeof *values));
    tsw_engine *engine = new_engine(NULL, NULL);
    tsw_swapper *swapper;
    tsw_buffer *buffers[2];

    buffers_given_wrongly(engine);
    no_buffers(engine, values);
    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    for (int i = 0; i < 2; i++)
        check(tsw_buffer_new(engine, LEN, &buffers[i]), "buffer");
    check(tsw_swapper_add_buffers(swapper, buffers, 2, TSW_F32), "add");
    tensors_given_wrongly(swapper, values);
    figures(swapper, values);
    metrics(engine);
    for (int i = 0; i < 2; i++)
        tsw_buffer_free(buffers[i]);
    tsw_swapper_free(swapper);
    {
        char text[65536];
        EXPECT(tsw_engine_prometheus(engine, text, sizeof text) < sizeof text);
        EXPECT(strstr(text, "tensorswap_swapper") == NULL);
    }
    tsw_engine_free(engine);
    after_shutdown(values);
    free(values);
    return result();
}
