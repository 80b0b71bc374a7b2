/* What calls.py measures, in C: nanoseconds for each call, and seconds for large tensors out and in.
 *
 *     calls DIRECTORY call COUNT        one line: NAME NANOSECONDS for each
 *     calls DIRECTORY bytes COUNT MIB   one line: seconds out, seconds in */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorswap.h>
#include <time.h>

static void must(tsw_status status)
{
    char message[512];
    if (status >= 0) return;
    tsw_last_error_message(message, sizeof message);
    fprintf(stderr, "%s: %s\n", tsw_status_name(status), message);
    exit(1);
}

static double clock_ns(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static double now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* Of this thread alone: what other programs do meanwhile does not count. */
static double cpu_ns(void)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void calls(const char *directory, int count)
{
    tsw_config *config = tsw_config_new();
    tsw_engine *engine;
    tsw_optimizer *optimizer;
    tsw_buffer *buffer;
    tsw_ticket *tickets = malloc(sizeof *tickets * (size_t)count);
    tsw_engine_stats stats = {.struct_size = sizeof stats};
    tsw_parameter_view view = {.struct_size = sizeof view};
    double started;

    must(tsw_config_set(config, "path", directory));
    must(tsw_config_set(config, "backend", "memory"));
    must(tsw_config_set(config, "tickets_max", "100000"));
    must(tsw_engine_new(config, &engine));
    must(tsw_buffer_new(engine, 4096, &buffer));
    must(tsw_optimizer_new(engine, config, &optimizer));
    must(tsw_optimizer_add_state(optimizer, "master", TSW_F32, TSW_F32));
    must(tsw_optimizer_add_parameter(optimizer, 1, NULL, 1024));

    tsw_tensor tensor = {.data = tsw_buffer_data(buffer), .numel = 1024, .dtype = TSW_F32};
    const char *path = "file";
    started = cpu_ns();
    for (int i = 0; i < count; i++) must(tsw_engine_swap_out(engine, &tensor, &path, 1, &tickets[i]));
    must(tsw_engine_wait_all(engine, TSW_WAIT_FOREVER));
    for (int i = 0; i < count; i++) must(tsw_ticket_wait(engine, tickets[i], TSW_WAIT_FOREVER, NULL));
    printf("swap_out+wait %g\n", (cpu_ns() - started) / count);
    started = cpu_ns();
    for (int i = 0; i < count; i++) must(tsw_engine_get_stats(engine, &stats));
    printf("stats %g\n", (cpu_ns() - started) / count);
    started = cpu_ns();
    for (int i = 0; i < count; i++) {
        must(tsw_optimizer_swap_in_state(optimizer, 1, TSW_NO_PARAMETER, &view));
        must(tsw_optimizer_release_state(optimizer, 1));
    }
    printf("swap_in_state+release_state %g\n", (cpu_ns() - started) / count);
    started = cpu_ns();
    for (int i = 0; i < count; i++) (void)tsw_optimizer_step_number(optimizer);
    printf("step_number %g\n", (cpu_ns() - started) / count);
    tsw_optimizer_free(optimizer);
    tsw_buffer_free(buffer);
    tsw_engine_free(engine);
    tsw_config_free(config);
    free(tickets);
}

static void bytes(const char *directory, int count, uint64_t len_bytes)
{
    tsw_engine *engine;
    tsw_buffer *buffer;
    tsw_ticket *tickets = malloc(sizeof *tickets * (size_t)count);
    char name[4096];
    const char *path = name;
    double elapsed[2];

    must(tsw_engine_new(NULL, &engine));
    must(tsw_buffer_new(engine, len_bytes * (uint64_t)count, &buffer));
    memset(tsw_buffer_data(buffer), 1, len_bytes * (uint64_t)count);
    for (int direction = 0; direction < 2; direction++) {
        const double started = now_ns();
        for (int i = 0; i < count; i++) {
            tsw_tensor tensor = {.numel = len_bytes, .dtype = TSW_BYTES};
            tensor.data = (char *)tsw_buffer_data(buffer) + len_bytes * (uint64_t)i;
            snprintf(name, sizeof name, "%s/file%d", directory, i);
            must(direction == 0 ? tsw_engine_swap_out(engine, &tensor, &path, 1, &tickets[i])
                                : tsw_engine_swap_in(engine, &tensor, &path, 1, &tickets[i]));
        }
        for (int i = 0; i < count; i++) must(tsw_ticket_wait(engine, tickets[i], TSW_WAIT_FOREVER, NULL));
        elapsed[direction] = (now_ns() - started) / 1e9;
    }
    printf("%g %g\n", elapsed[0], elapsed[1]);
    tsw_buffer_free(buffer);
    tsw_engine_free(engine);
    free(tickets);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[2], "call") == 0) {
        calls(argv[1], atoi(argv[3]));
    } else if (argc == 5 && strcmp(argv[2], "bytes") == 0) {
        bytes(argv[1], atoi(argv[3]), (uint64_t)atoi(argv[4]) << 20);
    } else {
        fprintf(stderr, "usage: calls DIRECTORY call COUNT | bytes COUNT MIB\n");
        return 2;
    }
    return 0;
}
