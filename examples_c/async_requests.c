/* Direct requests without a copy: pieces of one pinned buffer go to files and come back. Nobody
 * blocks in the library; the completions arrive through an event fd in an ordinary poll loop.
 *
 *     async_requests [DIRECTORY]      default: a temporary one here, removed at the end */
#include "example.h"

#include <poll.h>

enum { PIECES = 8, PIECE_BYTES = 2 << 20, COMPLETIONS_AT_ONCE = 4 };

typedef tsw_status submit_function(tsw_engine *, const tsw_tensor *, const char *const *, size_t,
                                   tsw_ticket *);

struct transfer {
    tsw_tensor tensor;
    char *path;
    tsw_ticket ticket; /* 0, which is never valid: nothing pending */
};

static uint64_t pattern(int piece, uint64_t word)
{
    return ((uint64_t)piece << 56) ^ (word * UINT64_C(0x9e3779b97f4a7c15));
}

/* How far all the transfers are together, of PIECES * PIECE_BYTES. */
static uint64_t bytes_done(tsw_engine *engine, const struct transfer *transfers)
{
    uint64_t sum = 0;
    for (int i = 0; i < PIECES; i++) {
        uint64_t done = PIECE_BYTES, total;
        if (transfers[i].ticket != 0)
            check(tsw_ticket_progress(engine, transfers[i].ticket, &done, &total), "progress");
        sum += done;
    }
    return sum;
}

/* Takes the completions that are there, each once, and returns how many. */
static int take_completions(tsw_engine *engine, struct transfer *transfers)
{
    tsw_completion completions[COMPLETIONS_AT_ONCE];
    size_t len;

    completions[0].struct_size = sizeof completions[0]; /* the stride of the array */
    check(tsw_ticket_poll(engine, completions, COMPLETIONS_AT_ONCE, &len), "poll");
    for (size_t i = 0; i < len; i++) {
        const tsw_completion *completion = &completions[i];
        if (completion->status != TSW_OK) /* poll worked; it is this request that failed */
            fail(tsw_status_name(completion->status), completion->message);
        transfers[completion->user_tag].ticket = 0; /* delivered: the ticket has ended */
    }
    return (int)len;
}

/* Submits one request per piece, then serves the event fd until all are done. */
static void run(tsw_engine *engine, submit_function *submit, const char *what,
                struct transfer *transfers)
{
    struct pollfd event = {.events = POLLIN};
    int pending = PIECES;

    check(tsw_engine_event_fd(engine, &event.fd), "event fd");
    for (int i = 0; i < PIECES; i++) {
        const char *path = transfers[i].path;
        check(submit(engine, &transfers[i].tensor, &path, 1, &transfers[i].ticket), what);
    }
    while (pending > 0) {
        /* A real program has its sockets and timers in this list too. The fd stays readable as
         * long as a completion is undelivered; reading or closing it is the engine's business. */
        if (poll(&event, 1, -1) < 0 && errno != EINTR)
            fail("poll", strerror(errno));
        pending -= take_completions(engine, transfers);
        printf("%s: %2d pending, %5.1f %% of the bytes done\n", what, pending,
               100.0 * (double)bytes_done(engine, transfers) / ((double)PIECES * PIECE_BYTES));
    }
}

int main(int argc, char **argv)
{
    const char *directory = argc > 1 ? argv[1] : temporary_directory(".");
    const uint64_t words = PIECE_BYTES / sizeof(uint64_t);
    struct transfer transfers[PIECES] = {0};
    tsw_engine *engine;
    tsw_buffer *buffer;
    uint64_t *data, wrong = 0;

    check(tsw_engine_new(NULL, &engine), "engine");
    check(tsw_buffer_new(engine, (uint64_t)PIECES * PIECE_BYTES, &buffer), "pinned buffer");
    data = tsw_buffer_data(buffer);
    for (int i = 0; i < PIECES; i++) {
        tsw_tensor *tensor = &transfers[i].tensor;
        tensor->data = data + i * words; /* any pointer into the buffer counts as pinned */
        tensor->numel = PIECE_BYTES;
        tensor->dtype = TSW_BYTES;
        tensor->user_tag = (uint64_t)i; /* comes back in the completion */
        transfers[i].path = path_in(directory, "piece%d", i);
        for (uint64_t word = 0; word < words; word++)
            data[i * words + word] = pattern(i, word);
    }

    run(engine, tsw_engine_swap_out, "swap out", transfers);
    memset(data, 0, (size_t)tsw_buffer_len(buffer));
    run(engine, tsw_engine_swap_in, "swap in", transfers);

    for (int i = 0; i < PIECES; i++) {
        for (uint64_t word = 0; word < words; word++)
            wrong += data[i * words + word] != pattern(i, word);
        free(transfers[i].path);
    }
    printf("%d pieces of %d bytes there and back, %llu words wrong\n", PIECES, PIECE_BYTES,
           (unsigned long long)wrong);
    tsw_buffer_free(buffer);
    tsw_engine_free(engine);
    return wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
