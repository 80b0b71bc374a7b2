/* Configuration and swapper: a second thread gets TSW_ERR_BUSY, never a data race. Engine, tickets
 * and buffers: any number of threads at once. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>

enum { BUFFER = 1 << 20, LARGE = 48 << 20, THREADS = 4, ROUNDS = 50 };

static tsw_engine *engine;
static tsw_swapper *swapper;
static atomic_int running, others;

static void *stage_large(void *data)
{
    const tsw_tensor tensor = bytes_at(data, LARGE, 0);
    const char *path = "large";
    tsw_status status;
    atomic_store(&running, 1);
    /* The other thread may be the first one in. */
    while ((status = tsw_swapper_swap_out(swapper, &tensor, &path, 1)) == TSW_ERR_BUSY)
        pause_ms(1);
    EXPECT_STATUS(status, TSW_OK);
    atomic_store(&running, 0);
    return NULL;
}

/* While one thread stages a large tensor, whatever another one asks is refused, not interleaved. */
static void second_thread_is_busy(void)
{
    char *data = check_memory(malloc(LARGE));
    int busy = 0;

    fill(data, LARGE, 1);
    for (int attempt = 0; attempt < 20 && busy == 0; attempt++) {
        pthread_t thread;
        pthread_create(&thread, NULL, stage_large, data);
        while (!atomic_load(&running))
            pause_ms(1);
        while (atomic_load(&running)) {
            const tsw_status status = tsw_swapper_flush(swapper, 0);
            EXPECT(status == TSW_OK || status == TSW_ERR_BUSY || status == TSW_ERR_TIMED_OUT);
            busy += status == TSW_ERR_BUSY;
        }
        pthread_join(thread, NULL);
    }
    EXPECT(busy > 0);
    EXPECT_STATUS(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_OK);
    memset(data, 0, LARGE);
    EXPECT_STATUS(swap_in(engine, bytes_at(data, LARGE, 0), "large"), TSW_OK);
    EXPECT(is_filled(data, LARGE, 1));
    free(data);
}

/* Every thread: the shared swapper and configuration (BUSY is fine), and requests of its own. */
static void *everything(void *argument)
{
    tsw_config *config = argument;
    const unsigned id = (unsigned)atomic_fetch_add(&others, 1);
    char *path = path_in(".", "thread%u", id), *data = check_memory(malloc(10000)), text[64];
    const tsw_tensor tensor = bytes_at(data, 10000, id);
    const char *const paths[1] = {path};

    for (int round = 0; round < ROUNDS; round++) {
        tsw_status status = tsw_config_set(config, "queue_depth", round % 2 ? "8" : "16");
        tsw_swapper_stats stats = {.struct_size = sizeof stats};
        tsw_buffer *buffer;
        tsw_ticket ticket;

        EXPECT(status == TSW_OK || status == TSW_ERR_BUSY);
        EXPECT(tsw_config_get(config, "queue_depth", text, sizeof text) <= 2);
        status = tsw_swapper_swap_out(swapper, &tensor, paths, 1);
        EXPECT(status == TSW_OK || status == TSW_ERR_BUSY);
        EXPECT_STATUS(tsw_swapper_get_stats(swapper, &stats), TSW_OK);

        fill(data, 10000, id + (unsigned)round);
        check(tsw_buffer_new(engine, 5000, &buffer), "buffer");
        tsw_buffer_free(buffer);
        check(tsw_engine_swap_out(engine, &tensor, paths, 1, &ticket), "swap out");
        EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
        memset(data, 0, 10000);
        EXPECT_STATUS(swap_in(engine, tensor, path), TSW_OK);
        EXPECT(tsw_engine_describe(engine, NULL, 0) > 0);
    }
    free(data);
    free(path);
    return NULL;
}

static void all_at_once(void)
{
    tsw_config *config = check_memory(tsw_config_new());
    pthread_t threads[THREADS];

    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, everything, config);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    EXPECT_STATUS(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_OK);
    tsw_config_free(config);
}

static void *fail_elsewhere(void *argument)
{
    (void)argument;
    EXPECT(last_message()[0] == '\0' && tsw_last_error_os() == 0);
    EXPECT_STATUS(tsw_engine_new(NULL, NULL), TSW_ERR_NULL_ARGUMENT);
    return NULL;
}

/* Each thread has its own last error. */
static void errors_stay_with_their_thread(void)
{
    char data[10];
    pthread_t thread;
    EXPECT_ERROR(swap_in(engine, bytes_at(data, 10, 0), "missing"), TSW_ERR_NOT_FOUND, "ENOENT");
    pthread_create(&thread, NULL, fail_elsewhere, NULL);
    pthread_join(thread, NULL);
    EXPECT(strstr(last_message(), "ENOENT") != NULL && tsw_last_error_os() == ENOENT);
}

int main(void)
{
    tsw_buffer *buffers[2];
    engine = new_engine(NULL, NULL);
    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    for (int i = 0; i < 2; i++)
        check(tsw_buffer_new(engine, BUFFER, &buffers[i]), "buffer");
    check(tsw_swapper_add_buffers(swapper, buffers, 2, TSW_BYTES), "add");

    second_thread_is_busy();
    all_at_once();
    errors_stay_with_their_thread();

    tsw_swapper_free(swapper);
    for (int i = 0; i < 2; i++)
        tsw_buffer_free(buffers[i]);
    tsw_engine_free(engine);
    return result();
}
