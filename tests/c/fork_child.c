/* After a fork the child gets TSW_ERR_FORKED for the parent's objects, can free them without
 * hanging, and can make its own; the parent goes on. */
#include "test.h"

#include <sys/wait.h>

enum { LEN = 1 << 20 };

struct objects {
    tsw_config *config;
    tsw_engine *engine;
    tsw_buffer *buffer;
    tsw_swapper *swapper;
    tsw_ticket ticket;
};

static void in_the_child(struct objects *o)
{
    tsw_completion completion = {.struct_size = sizeof completion};
    tsw_engine_stats stats = {.struct_size = sizeof stats};
    tsw_swapper_stats swapper_stats = {.struct_size = sizeof swapper_stats};
    char data[100];
    const tsw_tensor tensor = bytes_at(data, sizeof data, 0);
    const char *path = "child";
    uint64_t done, total;
    tsw_ticket ticket;
    tsw_engine *engine;
    tsw_buffer *buffer;
    tsw_swapper *swapper;
    size_t count;
    int32_t fd;

    EXPECT_STATUS(tsw_config_set(o->config, "pin", "off"), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_engine_new(o->config, &engine), TSW_ERR_FORKED);
    EXPECT_ERROR(tsw_engine_swap_out(o->engine, &tensor, &path, 1, &ticket), TSW_ERR_FORKED,
                 "fork");
    EXPECT_STATUS(tsw_engine_swap_in(o->engine, &tensor, &path, 1, &ticket), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_engine_wait_all(o->engine, TSW_WAIT_FOREVER), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_engine_shutdown(o->engine, TSW_WAIT_FOREVER), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_engine_get_stats(o->engine, &stats), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_engine_event_fd(o->engine, &fd), TSW_ERR_FORKED);
    EXPECT(tsw_engine_describe(o->engine, NULL, 0) == 0);
    EXPECT_STATUS(tsw_ticket_wait(o->engine, o->ticket, TSW_WAIT_FOREVER, &completion),
                  TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_ticket_poll(o->engine, &completion, 1, &count), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_ticket_cancel(o->engine, o->ticket), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_ticket_progress(o->engine, o->ticket, &done, &total), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_buffer_new(o->engine, LEN, &buffer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_swapper_new(o->engine, NULL, &swapper), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_swapper_swap_out(o->swapper, &tensor, &path, 1), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_swapper_swap_in(o->swapper, &tensor, &path, 1), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_swapper_submit(o->swapper), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_swapper_flush(o->swapper, TSW_WAIT_FOREVER), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_swapper_release_buffers(o->swapper, &buffer, 1, &count), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_swapper_get_stats(o->swapper, &swapper_stats), TSW_ERR_FORKED);

    tsw_swapper_free(o->swapper);
    tsw_buffer_free(o->buffer);
    tsw_engine_free(o->engine);
    tsw_config_free(o->config);

    /* The child's own. */
    fill(data, sizeof data, 2);
    engine = new_engine(NULL, NULL);
    EXPECT_STATUS(swap_out(engine, tensor, path), TSW_OK);
    memset(data, 0, sizeof data);
    EXPECT_STATUS(swap_in(engine, tensor, path), TSW_OK);
    EXPECT(is_filled(data, sizeof data, 2));
    tsw_engine_free(engine);
}

int main(void)
{
    struct objects o = {.config = check_memory(tsw_config_new())};
    char *data = check_memory(malloc(LEN));
    const tsw_tensor tensor = bytes_at(data, LEN, 0);
    const char *direct = "direct", *staged = "staged";
    int status = -1;
    pid_t child;

    fill(data, LEN, 4);
    check(tsw_engine_new(o.config, &o.engine), "engine");
    check(tsw_buffer_new(o.engine, LEN, &o.buffer), "buffer");
    check(tsw_swapper_new(o.engine, NULL, &o.swapper), "swapper");
    check(tsw_swapper_add_buffers(o.swapper, &o.buffer, 1, TSW_BYTES), "add");
    check(tsw_swapper_swap_out(o.swapper, &tensor, &staged, 1), "staged");
    check(tsw_engine_swap_out(o.engine, &tensor, &direct, 1, &o.ticket), "swap out");

#ifdef __SANITIZE_ADDRESS__
    /* The sanitizer's malloc, other than libc's, does not survive a fork while another thread is in
     * it: let the threads of the engine fall asleep first. */
    EXPECT_STATUS(tsw_engine_wait_all(o.engine, TSW_WAIT_FOREVER), TSW_OK);
    EXPECT_STATUS(tsw_swapper_flush(o.swapper, TSW_WAIT_FOREVER), TSW_OK);
    pause_ms(100);
#endif
    fflush(stdout);
    child = fork();
    if (child == 0) {
        in_the_child(&o);
        fflush(stdout);
        _exit(failures > 0);
    }
    EXPECT(child > 0 && waitpid(child, &status, 0) == child);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);

    EXPECT_STATUS(tsw_ticket_wait(o.engine, o.ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT_STATUS(tsw_swapper_flush(o.swapper, TSW_WAIT_FOREVER), TSW_OK);
    memset(data, 0, LEN);
    EXPECT_STATUS(swap_in(o.engine, tensor, direct), TSW_OK);
    EXPECT(is_filled(data, LEN, 4));
    memset(data, 0, LEN);
    EXPECT_STATUS(swap_in(o.engine, tensor, staged), TSW_OK);
    EXPECT(is_filled(data, LEN, 4));
    tsw_swapper_free(o.swapper);
    tsw_buffer_free(o.buffer);
    tsw_engine_free(o.engine);
    tsw_config_free(o.config);
    free(data);
    return result();
}
