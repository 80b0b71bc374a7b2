/* Buffers freed in any order, while in flight, while a swapper holds them; hooks exactly once. */
#include "test.h"

#include <stdatomic.h>

enum { LEN = 1 << 20 };

struct hook {
    atomic_int calls;
    void *data;
};

/* Checks what it gets and frees the memory: nothing may touch it from here on. */
static void on_release(void *user_data, void *data, uint64_t len_bytes)
{
    struct hook *hook = user_data;
    EXPECT(data == hook->data && len_bytes == LEN);
    memset(data, 0xee, LEN);
    free(data);
    atomic_fetch_add(&hook->calls, 1);
}

static tsw_buffer *registered(tsw_engine *engine, struct hook *hook)
{
    tsw_buffer *buffer;
    atomic_store(&hook->calls, 0);
    hook->data = check_memory(malloc(LEN));
    fill(hook->data, LEN, 5);
    check(tsw_buffer_register(engine, hook->data, LEN, on_release, hook, &buffer), "register");
    EXPECT(tsw_buffer_data(buffer) == hook->data && tsw_buffer_len(buffer) == LEN);
    return buffer;
}

static tsw_ticket write_all(tsw_engine *engine, tsw_buffer *buffer, const char *path)
{
    const tsw_tensor tensor = bytes_at(tsw_buffer_data(buffer), tsw_buffer_len(buffer), 0);
    tsw_ticket ticket;
    check(tsw_engine_swap_out(engine, &tensor, &path, 1, &ticket), "swap out");
    return ticket;
}

static void sizes(tsw_engine *engine)
{
    tsw_buffer *buffer = (tsw_buffer *)engine;
    char byte;

    EXPECT_STATUS(tsw_buffer_new(engine, 0, &buffer), TSW_ERR_INVALID_ARGUMENT);
    EXPECT(buffer == NULL);
    EXPECT_STATUS(tsw_buffer_new(engine, UINT64_MAX, &buffer), TSW_ERR_NO_MEMORY);
    EXPECT_STATUS(tsw_buffer_new(engine, UINT64_C(1) << 60, &buffer), TSW_ERR_NO_MEMORY);
    EXPECT_STATUS(tsw_buffer_register(engine, &byte, 0, NULL, NULL, &buffer),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_buffer_register(engine, &byte, UINT64_MAX, NULL, NULL, &buffer),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_buffer_new(engine, 1, &buffer), TSW_OK);
    EXPECT(tsw_buffer_len(buffer) == 1 && *(char *)tsw_buffer_data(buffer) == 0);
    tsw_buffer_free(buffer);
    EXPECT_STATUS(tsw_buffer_register(engine, &byte, 1, NULL, NULL, &buffer), TSW_OK);
    tsw_buffer_free(buffer); /* without a hook: has let go when it returns */
}

/* A hook does not run where registering failed: the memory never was the library's. */
static void refused(tsw_engine *engine)
{
    struct hook hook = {0, NULL};
    tsw_buffer *buffer;
    EXPECT_STATUS(tsw_buffer_register(engine, NULL, LEN, on_release, &hook, &buffer),
                  TSW_ERR_NULL_ARGUMENT);
    EXPECT_STATUS(tsw_buffer_register(engine, &hook, 0, on_release, &hook, &buffer),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT(atomic_load(&hook.calls) == 0);
}

static void while_in_flight(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    struct hook hook;
    tsw_buffer *foreign = registered(engine, &hook), *own, *plain;
    char *memory = check_memory(malloc(LEN)), *file = check_memory(malloc(LEN));
    tsw_ticket tickets[3];

    check(tsw_buffer_new(engine, LEN, &own), "buffer");
    fill(tsw_buffer_data(own), LEN, 6);
    fill(memory, LEN, 7);
    check(tsw_buffer_register(engine, memory, LEN, NULL, NULL, &plain), "register");
    tickets[0] = write_all(engine, foreign, "foreign");
    tickets[1] = write_all(engine, own, "own");
    tickets[2] = write_all(engine, plain, "plain");
    tsw_buffer_free(foreign);
    tsw_buffer_free(own);
    tsw_buffer_free(plain);
    free(memory); /* legal at once: without a hook, free has waited */
    for (int i = 0; i < 3; i++)
        EXPECT_STATUS(tsw_ticket_wait(engine, tickets[i], TSW_WAIT_FOREVER, NULL), TSW_OK);
    for (int i = 0; i < 3; i++) {
        static const char *const names[3] = {"foreign", "own", "plain"};
        EXPECT_STATUS(swap_in(engine, bytes_at(file, LEN, 0), names[i]), TSW_OK);
        EXPECT(is_filled(file, LEN, 5 + (unsigned)i));
    }
    tsw_engine_free(engine);
    EXPECT(atomic_load(&hook.calls) == 1); /* at the latest when the engine is gone */
    free(file);
}

static void after_the_engine(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    struct hook hook;
    tsw_buffer *foreign = registered(engine, &hook), *own;
    char *data;

    check(tsw_buffer_new(engine, LEN, &own), "buffer");
    write_all(engine, own, "undelivered"); /* its ticket ends with the engine */
    tsw_engine_free(engine);
    EXPECT(file_len("undelivered") == LEN);
    EXPECT(atomic_load(&hook.calls) == 0);
    data = tsw_buffer_data(own);
    fill(data, LEN, 1); /* still there */
    EXPECT(is_filled(data, LEN, 1));
    tsw_buffer_free(own);
    tsw_buffer_free(foreign);
    EXPECT(atomic_load(&hook.calls) == 1);
}

/* The swapper takes five; of those freed meanwhile it hands back none. */
static void held_by_a_swapper(tsw_engine *engine)
{
    struct hook hooks[2];
    tsw_buffer *buffers[5], *back[5] = {0};
    tsw_swapper *swapper;
    char *tensor_data = check_memory(malloc(3 * LEN));
    const tsw_tensor tensor = bytes_at(tensor_data, 3 * LEN, 0);
    const char *path = "staged";
    size_t count = 7;

    fill(tensor_data, 3 * LEN, 9);
    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    for (int i = 0; i < 5; i++) {
        if (i < 2)
            buffers[i] = registered(engine, &hooks[i]);
        else
            check(tsw_buffer_new(engine, LEN, &buffers[i]), "buffer");
    }
    check(tsw_swapper_add_buffers(swapper, buffers, 5, TSW_BYTES), "add");
    check(tsw_swapper_swap_out(swapper, &tensor, &path, 1), "swap out");
    tsw_buffer_free(buffers[1]); /* takes effect at the release */
    tsw_buffer_free(buffers[3]);
    EXPECT(atomic_load(&hooks[1].calls) == 0);
    EXPECT_ERROR(tsw_swapper_release_buffers(swapper, back, 2, &count), TSW_ERR_INVALID_ARGUMENT,
                 "3 buffers");
    EXPECT(count == 3 && back[0] == NULL && tsw_swapper_has_buffers(swapper) == 1);
    EXPECT_STATUS(tsw_swapper_release_buffers(swapper, back, 5, &count), TSW_OK);
    EXPECT(count == 3 && tsw_swapper_has_buffers(swapper) == 0);
    EXPECT(back[0] == buffers[0] && back[1] == buffers[2] && back[2] == buffers[4]);
    EXPECT(file_len(path) == 3 * LEN);

    /* Freed while a swapper holds them, and the swapper freed. */
    check(tsw_swapper_add_buffers(swapper, back, 3, TSW_BYTES), "add again");
    check(tsw_swapper_swap_out(swapper, &tensor, &path, 1), "swap out");
    tsw_buffer_free(back[0]);
    tsw_buffer_free(back[1]);
    EXPECT(atomic_load(&hooks[0].calls) == 0);
    tsw_swapper_free(swapper);
    tsw_buffer_free(back[2]); /* the swapper is gone: the caller's again */
    memset(tensor_data, 0, 3 * LEN);
    EXPECT_STATUS(swap_in(engine, tensor, path), TSW_OK);
    EXPECT(is_filled(tensor_data, 3 * LEN, 9));
    free(tensor_data);
    /* The ring lets go on a thread of the engine. */
    for (int i = 0; i < 500 && atomic_load(&hooks[0].calls) + atomic_load(&hooks[1].calls) < 2; i++)
        pause_ms(10);
    EXPECT(atomic_load(&hooks[0].calls) == 1 && atomic_load(&hooks[1].calls) == 1);
}

/* The swapper keeps the engine alive; freed in the worst order. */
static void engine_first(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    tsw_swapper *swapper;
    tsw_buffer *buffer;
    char data[1000];
    const tsw_tensor tensor = bytes_at(data, sizeof data, 0);
    const char *path = "engine-first";

    fill(data, sizeof data, 3);
    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    check(tsw_buffer_new(engine, LEN, &buffer), "buffer");
    check(tsw_swapper_add_buffers(swapper, &buffer, 1, TSW_BYTES), "add");
    check(tsw_swapper_swap_out(swapper, &tensor, &path, 1), "swap out");
    tsw_engine_free(engine);
    tsw_buffer_free(buffer);
    EXPECT_STATUS(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_OK);
    memset(data, 0, sizeof data);
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, &tensor, &path, 1), TSW_OK);
    EXPECT(is_filled(data, sizeof data, 3));
    tsw_swapper_free(swapper);
    EXPECT(file_len(path) == sizeof data);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    sizes(engine);
    refused(engine);
    held_by_a_swapper(engine);
    tsw_engine_free(engine);
    while_in_flight();
    after_the_engine();
    engine_first();
    return result();
}
