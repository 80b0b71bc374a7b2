/* What the misuse programs share: expectations that are counted, and a few short ways to call.
 * Each program runs in an empty directory of its own and leaves files there. */
#ifndef TEST_H
#define TEST_H

#include "example.h"

#include <sys/stat.h>

static int failures;

static inline void expect_true(int holds, const char *what, const char *file, int line)
{
    if (holds)
        return;
    printf("%s:%d: not so: %s\n", file, line, what);
    failures++;
}

static inline const char *last_message(void)
{
    static char message[65536];
    tsw_last_error_message(message, sizeof message);
    return message;
}

static inline void expect_status(tsw_status status, tsw_status expected, const char *what,
                                 const char *file, int line)
{
    if (status == expected)
        return;
    printf("%s:%d: %s: %s instead of %s (last message: %s)\n", file, line, what,
           tsw_status_name(status), tsw_status_name(expected), last_message());
    failures++;
}

#define EXPECT(condition) expect_true((condition) != 0, #condition, __FILE__, __LINE__)
#define EXPECT_STATUS(call, expected) \
    expect_status((call), (expected), #call, __FILE__, __LINE__)
/* The call fails with this status and these words in its message. */
#define EXPECT_ERROR(call, expected, words)                                              \
    do {                                                                                 \
        EXPECT_STATUS(call, expected);                                                   \
        expect_true(strstr(last_message(), words) != NULL, last_message(), __FILE__, __LINE__); \
    } while (0)

static inline int result(void)
{
    if (failures > 0)
        printf("%d expectations failed\n", failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static inline tsw_engine *new_engine(const char *key, const char *value)
{
    tsw_config *config = check_memory(tsw_config_new());
    tsw_engine *engine;
    if (key != NULL)
        check(tsw_config_set(config, key, value), key);
    check(tsw_engine_new(config, &engine), "engine");
    tsw_config_free(config);
    return engine;
}

static inline tsw_tensor bytes_at(void *data, uint64_t len_bytes, uint64_t file_offset)
{
    tsw_tensor tensor = {0};
    tensor.data = data;
    tensor.numel = len_bytes;
    tensor.dtype = TSW_BYTES;
    tensor.file_offset = file_offset;
    return tensor;
}

/* One request, waited for. */
static inline tsw_status swap_out(tsw_engine *engine, tsw_tensor tensor, const char *path)
{
    tsw_ticket ticket;
    const tsw_status status = tsw_engine_swap_out(engine, &tensor, &path, 1, &ticket);
    return status < 0 ? status : tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL);
}

static inline tsw_status swap_in(tsw_engine *engine, tsw_tensor tensor, const char *path)
{
    tsw_ticket ticket;
    const tsw_status status = tsw_engine_swap_in(engine, &tensor, &path, 1, &ticket);
    return status < 0 ? status : tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL);
}

/* The length of a file, -1 where there is none. */
static inline long long file_len(const char *path)
{
    struct stat file;
    return stat(path, &file) == 0 ? (long long)file.st_size : -1;
}

/* A repeatable pattern; two seeds differ everywhere. */
static inline void fill(void *data, size_t len_bytes, unsigned seed)
{
    unsigned char *bytes = data;
    for (size_t i = 0; i < len_bytes; i++)
        bytes[i] = (unsigned char)(i * 31 + (i >> 8) * 7 + seed * 101 + 1);
}

static inline int is_filled(const void *data, size_t len_bytes, unsigned seed)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i < len_bytes; i++)
        if (bytes[i] != (unsigned char)(i * 31 + (i >> 8) * 7 + seed * 101 + 1))
            return 0;
    return 1;
}

static inline void pause_ms(long ms)
{
    const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

#endif
