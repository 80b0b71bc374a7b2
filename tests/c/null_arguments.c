/* NULL for every pointer of every function: a status that names the argument, or 0 or NULL. */
#include "test.h"

#define EXPECT_NULL(call, argument) EXPECT_ERROR(call, TSW_ERR_NULL_ARGUMENT, argument " is NULL")

static void no_object(void)
{
    tsw_ticket ticket = 7;
    tsw_completion completion = {.struct_size = sizeof completion, .ticket = 7};
    tsw_engine_stats engine_stats = {.struct_size = sizeof engine_stats, .requests_count = 7};
    tsw_swapper_stats swapper_stats = {.struct_size = sizeof swapper_stats};
    tsw_timer timer = {.struct_size = sizeof timer};
    tsw_buffer *buffer = (tsw_buffer *)&ticket;
    tsw_swapper *swapper = (tsw_swapper *)&ticket;
    uint64_t done = 7, total = 7;
    size_t count = 7;
    int32_t fd = 7;

    EXPECT_NULL(tsw_config_set(NULL, "pin", "off"), "config");
    EXPECT_NULL(tsw_config_load_json(NULL, "{}", 2), "config");
    EXPECT_NULL(tsw_engine_shutdown(NULL, 0), "engine");
    EXPECT_NULL(tsw_engine_get_stats(NULL, &engine_stats), "engine");
    EXPECT(engine_stats.requests_count == 0 && engine_stats.struct_size == sizeof engine_stats);
    EXPECT_NULL(tsw_engine_event_fd(NULL, &fd), "engine");
    EXPECT(fd == -1);
    EXPECT_NULL(tsw_engine_swap_out(NULL, NULL, NULL, 0, &ticket), "engine");
    EXPECT(ticket == 0);
    ticket = 7;
    EXPECT_NULL(tsw_engine_swap_in(NULL, NULL, NULL, 0, &ticket), "engine");
    EXPECT(ticket == 0);
    EXPECT_NULL(tsw_engine_wait_all(NULL, 0), "engine");
    EXPECT_NULL(tsw_ticket_wait(NULL, 1, 0, &completion), "engine");
    EXPECT(completion.ticket == 0);
    EXPECT_NULL(tsw_ticket_poll(NULL, &completion, 1, &count), "engine");
    EXPECT(count == 0);
    EXPECT_NULL(tsw_ticket_cancel(NULL, 1), "engine");
    EXPECT_NULL(tsw_ticket_progress(NULL, 1, &done, &total), "engine");
    EXPECT(done == 0 && total == 0);
    EXPECT_NULL(tsw_buffer_new(NULL, 4096, &buffer), "engine");
    EXPECT(buffer == NULL);
    buffer = (tsw_buffer *)&ticket;
    EXPECT_NULL(tsw_buffer_register(NULL, &done, sizeof done, NULL, NULL, &buffer), "engine");
    EXPECT(buffer == NULL);
    EXPECT_NULL(tsw_swapper_new(NULL, NULL, &swapper), "engine");
    EXPECT(swapper == NULL);
    EXPECT_NULL(tsw_swapper_add_buffers(NULL, &buffer, 1, TSW_F32), "swapper");
    EXPECT_NULL(tsw_swapper_swap_out(NULL, NULL, NULL, 0), "swapper");
    EXPECT_NULL(tsw_swapper_swap_in(NULL, NULL, NULL, 0), "swapper");
    EXPECT_NULL(tsw_swapper_submit(NULL), "swapper");
    EXPECT_NULL(tsw_swapper_flush(NULL, 0), "swapper");
    count = 7;
    EXPECT_NULL(tsw_swapper_release_buffers(NULL, &buffer, 1, &count), "swapper");
    EXPECT(count == 0);
    EXPECT_NULL(tsw_swapper_get_stats(NULL, &swapper_stats), "swapper");
    EXPECT_NULL(tsw_swapper_get_timer(NULL, "flush", &timer), "swapper");
}

static void no_values(void)
{
    char text[8] = "before";
    const char *name = "before";

    tsw_config_free(NULL);
    tsw_engine_free(NULL);
    tsw_buffer_free(NULL);
    tsw_swapper_free(NULL);
    EXPECT(tsw_config_get(NULL, "pin", text, sizeof text) == 0);
    EXPECT(tsw_engine_describe(NULL, text, sizeof text) == 0);
    EXPECT(tsw_engine_prometheus(NULL, text, sizeof text) == 0);
    EXPECT(tsw_buffer_data(NULL) == NULL && tsw_buffer_len(NULL) == 0);
    EXPECT(tsw_swapper_has_buffers(NULL) == 0);
    EXPECT(tsw_swapper_timer_names(NULL, &name, 1) == 0);
    EXPECT(strcmp(text, "before") == 0 && strcmp(name, "before") == 0);
    EXPECT(tsw_config_key_name(tsw_config_keys()) == NULL);
    EXPECT(tsw_config_key_default((size_t)-1) == NULL);
    EXPECT(tsw_config_key_help((size_t)-1) == NULL);
    EXPECT_STATUS(tsw_set_log(NULL, NULL, TSW_LOG_TRACE), TSW_OK);
}

static void no_result(tsw_engine *engine, tsw_swapper *swapper)
{
    float value = 1;
    tsw_tensor tensor = {.data = &value, .numel = 1, .dtype = TSW_F32};
    const char *path = "file", *no_path = NULL;
    tsw_ticket ticket = 7;
    tsw_completion completion = {.struct_size = sizeof completion};
    tsw_timer timer = {.struct_size = sizeof timer};
    tsw_buffer *buffer = NULL;
    uint64_t number;
    size_t count;

    EXPECT_NULL(tsw_engine_new(NULL, NULL), "engine_out");
    EXPECT_NULL(tsw_engine_get_stats(engine, NULL), "inout");
    EXPECT_NULL(tsw_engine_event_fd(engine, NULL), "fd_out");
    EXPECT_NULL(tsw_buffer_new(engine, 4096, NULL), "buffer_out");
    EXPECT_NULL(tsw_buffer_register(engine, &value, 4, NULL, NULL, NULL), "buffer_out");
    EXPECT_NULL(tsw_buffer_register(engine, NULL, 4, NULL, NULL, &buffer), "data");
    EXPECT_NULL(tsw_engine_swap_out(engine, &tensor, &path, 1, NULL), "ticket_out");
    EXPECT_NULL(tsw_engine_swap_out(engine, NULL, &path, 1, &ticket), "tensors");
    EXPECT(ticket == 0);
    EXPECT_NULL(tsw_engine_swap_in(engine, &tensor, NULL, 1, &ticket), "paths");
    EXPECT_NULL(tsw_engine_swap_out(engine, &tensor, &no_path, 1, &ticket), "paths[0]: path");
    tensor.data = NULL;
    EXPECT_NULL(tsw_engine_swap_in(engine, &tensor, &path, 1, &ticket), "tensors[0]: tensor data");
    EXPECT_NULL(tsw_ticket_poll(engine, &completion, 1, NULL), "len_out");
    EXPECT_NULL(tsw_ticket_poll(engine, NULL, 1, &count), "array[0]");
    EXPECT_STATUS(tsw_ticket_poll(engine, NULL, 0, &count), TSW_OK);
    EXPECT_NULL(tsw_ticket_progress(engine, 1, NULL, &number), "done_bytes_out");
    EXPECT_NULL(tsw_ticket_progress(engine, 1, &number, NULL), "total_bytes_out");
    EXPECT_NULL(tsw_tensor_from_dlpack(NULL, &tensor), "dl_tensor");
    EXPECT_NULL(tsw_tensor_from_dlpack(&tensor, NULL), "tensor_out");

    EXPECT_NULL(tsw_swapper_new(engine, NULL, NULL), "swapper_out");
    EXPECT_NULL(tsw_swapper_add_buffers(swapper, NULL, 1, TSW_F32), "buffers");
    EXPECT_NULL(tsw_swapper_add_buffers(swapper, &buffer, 1, TSW_F32), "buffers[0]: buffer");
    EXPECT_NULL(tsw_swapper_swap_out(swapper, NULL, &path, 1), "tensors");
    EXPECT_NULL(tsw_swapper_swap_in(swapper, &tensor, NULL, 1), "paths");
    EXPECT_NULL(tsw_swapper_release_buffers(swapper, &buffer, 1, NULL), "count_out");
    EXPECT_NULL(tsw_swapper_release_buffers(swapper, NULL, 1, &count), "buffers_out");
    EXPECT_NULL(tsw_swapper_get_stats(swapper, NULL), "inout");
    EXPECT_NULL(tsw_swapper_get_timer(swapper, NULL, &timer), "name");
    EXPECT_NULL(tsw_swapper_get_timer(swapper, "flush", NULL), "inout");
    EXPECT(tsw_swapper_timer_names(swapper, NULL, 0) == 0);
    EXPECT(tsw_engine_describe(engine, NULL, 0) > 2);
    EXPECT(tsw_engine_prometheus(engine, NULL, 0) > 2);
    EXPECT(file_len("file") == -1);
}

static void no_text(void)
{
    tsw_config *config = check_memory(tsw_config_new());
    EXPECT_NULL(tsw_config_set(config, NULL, "off"), "key");
    EXPECT_NULL(tsw_config_set(config, "pin", NULL), "value");
    EXPECT_NULL(tsw_config_load_json(config, NULL, 1), "json");
    EXPECT(tsw_config_get(config, NULL, NULL, 0) == 0);
    tsw_config_free(config);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    tsw_swapper *swapper;

    EXPECT(tsw_last_error_message(NULL, 0) == 0 && tsw_last_error_os() == 0);
    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    no_object();
    no_values();
    no_result(engine, swapper);
    no_text();
    tsw_swapper_free(swapper);
    tsw_engine_free(engine);
    return result();
}
