/* The log: levels, replacing while others log, and what a callback may not do. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>

struct receiver {
    atomic_int lines, bad;
    atomic_int gone; /* set when no call may come any more */
    uint32_t level_max;
};

static void receive(void *user_data, uint32_t level, const char *target, const char *message)
{
    struct receiver *receiver = user_data;
    const int bad = atomic_load(&receiver->gone) || level < TSW_LOG_ERROR
                 || level > receiver->level_max || strncmp(target, "tensorswap", 10) != 0
                 || message[0] == '\0' || strchr(message, '\n') != NULL;
    atomic_fetch_add(&receiver->bad, bad);
    atomic_fetch_add(&receiver->lines, 1);
}

static void set_log_from_inside(void *user_data, uint32_t level, const char *target,
                                const char *message)
{
    atomic_int *busy = user_data;
    (void)level, (void)target, (void)message;
    if (tsw_set_log(NULL, NULL, 0) == TSW_ERR_BUSY)
        atomic_fetch_add(busy, 1);
}

/* Something that is logged. */
static void make_noise(void)
{
    static const char json[] = "{\"aio\": {\"single_submit\": true, \"no_such_key\": 1}}";
    tsw_config *config = check_memory(tsw_config_new());
    check(tsw_config_load_json(config, json, sizeof json - 1), "load");
    tsw_config_free(config);
}

static atomic_int stop;

static void *make_noise_for_long(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop))
        make_noise();
    return NULL;
}

int main(void)
{
    struct receiver receiver = {.level_max = TSW_LOG_TRACE}, receivers[100];
    atomic_int busy = 0;
    pthread_t threads[2];
    tsw_engine *engine;
    int lines;

    make_noise(); /* nobody listens */
    EXPECT_ERROR(tsw_set_log(receive, &receiver, 6), TSW_ERR_INVALID_ARGUMENT, "level");
    EXPECT_STATUS(tsw_set_log(receive, &receiver, TSW_LOG_TRACE), TSW_OK);
    make_noise();
    engine = new_engine(NULL, NULL);
    tsw_engine_free(engine);
    lines = atomic_load(&receiver.lines);
    EXPECT(lines >= 3);

    receiver.level_max = TSW_LOG_ERROR;
    EXPECT_STATUS(tsw_set_log(receive, &receiver, TSW_LOG_ERROR), TSW_OK);
    make_noise();
    EXPECT_STATUS(tsw_set_log(receive, &receiver, TSW_LOG_OFF), TSW_OK);
    make_noise();
    EXPECT(atomic_load(&receiver.lines) == lines);

    EXPECT_STATUS(tsw_set_log(set_log_from_inside, &busy, TSW_LOG_TRACE), TSW_OK);
    make_noise();
    EXPECT(atomic_load(&busy) > 0);

    /* Replaced again and again while two threads log: no call comes late. */
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, make_noise_for_long, NULL);
    for (int i = 0; i < 100; i++) {
        memset(&receivers[i], 0, sizeof receivers[i]);
        receivers[i].level_max = TSW_LOG_TRACE;
        EXPECT_STATUS(tsw_set_log(receive, &receivers[i], TSW_LOG_TRACE), TSW_OK);
        if (i > 0)
            atomic_store(&receivers[i - 1].gone, 1);
        for (int turn = 0; turn < 1000 && atomic_load(&receivers[i].lines) == 0; turn++)
            pause_ms(1);
    }
    EXPECT_STATUS(tsw_set_log(NULL, NULL, TSW_LOG_TRACE), TSW_OK);
    atomic_store(&receivers[99].gone, 1);
    pause_ms(5);
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 100; i++)
        EXPECT(atomic_load(&receivers[i].bad) == 0 && atomic_load(&receivers[i].lines) > 0);
    EXPECT(atomic_load(&receiver.bad) == 0);
    return result();
}
