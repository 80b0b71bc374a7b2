/* Timeouts, wait_all, poll, the event descriptor, cancel, and a second waiter. */
#include "test.h"

#include <poll.h>
#include <pthread.h>

enum { LEN = 16 << 20, MANY = 12 };

static tsw_engine *engine;
static char *data;

/* Writes of the same range take effect one after the other: the last one is pending for long. */
static void submit_many(tsw_ticket *tickets)
{
    tsw_tensor tensor = bytes_at(data, LEN, 0);
    const char *path = "slow";
    for (int i = 0; i < MANY; i++) {
        tensor.user_tag = (uint64_t)i;
        check(tsw_engine_swap_out(engine, &tensor, &path, 1, &tickets[i]), "swap out");
    }
}

static int is_readable(void)
{
    struct pollfd event = {.events = POLLIN};
    check(tsw_engine_event_fd(engine, &event.fd), "event fd");
    return poll(&event, 1, 0) == 1;
}

static void timeouts(void)
{
    tsw_completion completion = {.struct_size = sizeof completion, .ticket = 7};
    tsw_ticket tickets[MANY];
    uint64_t done = 0, total = 0;
    size_t len = 7;

    EXPECT_STATUS(tsw_engine_wait_all(engine, 0), TSW_OK); /* nothing pending */
    EXPECT_STATUS(tsw_ticket_poll(engine, &completion, 1, &len), TSW_OK);
    EXPECT(len == 0 && !is_readable());

    submit_many(tickets);
    EXPECT_STATUS(tsw_ticket_wait(engine, tickets[MANY - 1], 0, &completion), TSW_ERR_TIMED_OUT);
    EXPECT(completion.ticket == 0 && completion.status == TSW_ERR_TIMED_OUT);
    EXPECT_STATUS(tsw_ticket_wait(engine, tickets[MANY - 1], 1, NULL), TSW_ERR_TIMED_OUT);
    EXPECT_STATUS(tsw_engine_wait_all(engine, 0), TSW_ERR_TIMED_OUT);
    EXPECT_STATUS(tsw_ticket_progress(engine, tickets[MANY - 1], &done, &total), TSW_OK);
    EXPECT(done < total && total == LEN);
    completion.struct_size = 3;
    EXPECT_STATUS(tsw_ticket_wait(engine, tickets[0], TSW_WAIT_FOREVER, &completion),
                  TSW_ERR_INVALID_ARGUMENT);
    completion.struct_size = sizeof completion;
    for (int i = 0; i < MANY; i++) { /* all are still good */
        EXPECT_STATUS(tsw_ticket_wait(engine, tickets[i], TSW_WAIT_FOREVER, &completion), TSW_OK);
        EXPECT(completion.user_tag == (uint64_t)i && completion.bytes_done == LEN);
    }
    EXPECT(!is_readable());
}

static void poll_with_a_stride(void)
{
    struct wide { /* a newer caller, whose structure has grown */
        tsw_completion known;
        uint64_t unknown[2];
    } *wide = check_memory(calloc(MANY, sizeof *wide));
    struct narrow { /* an older one, which knows the beginning */
        uint32_t struct_size;
        tsw_status status;
        int32_t os_error;
        uint32_t reserved;
        uint64_t failed_index;
        tsw_ticket ticket;
    } narrow[2];
    tsw_ticket tickets[MANY];
    size_t len = 0, sum = 0;

    submit_many(tickets);
    EXPECT_STATUS(tsw_engine_wait_all(engine, TSW_WAIT_FOREVER), TSW_OK);
    EXPECT(is_readable());
    wide[0].known.struct_size = 0;
    EXPECT_ERROR(tsw_ticket_poll(engine, &wide[0].known, MANY, &len), TSW_ERR_INVALID_ARGUMENT,
                 "struct_size");
    EXPECT(len == 0 && is_readable());
    memset(wide, 0x55, MANY * sizeof *wide);
    wide[0].known.struct_size = sizeof *wide;
    EXPECT_STATUS(tsw_ticket_poll(engine, &wide[0].known, MANY - 2, &len), TSW_OK);
    EXPECT(len == MANY - 2 && is_readable());
    for (size_t i = 0; i < len; i++) {
        EXPECT(wide[i].known.struct_size == sizeof *wide && wide[i].known.status == TSW_OK);
        EXPECT(wide[i].unknown[0] == 0 && wide[i].unknown[1] == 0);
        EXPECT(wide[i].known.ticket == tickets[i]); /* the oldest first */
        sum += (size_t)wide[i].known.user_tag;
    }
    EXPECT(wide[len].unknown[0] == UINT64_C(0x5555555555555555));
    narrow[0].struct_size = sizeof narrow[0];
    EXPECT_STATUS(tsw_ticket_poll(engine, (tsw_completion *)narrow, 2, &len), TSW_OK);
    EXPECT(len == 2 && narrow[0].ticket == tickets[MANY - 2]);
    EXPECT(narrow[1].ticket == tickets[MANY - 1] && narrow[1].struct_size == sizeof narrow[0]);
    EXPECT(sum == (MANY - 3) * (MANY - 2) / 2 && !is_readable());
    free(wide);
}

static void wait_all_tells_the_first_error(void)
{
    const tsw_tensor tensor = bytes_at(data, 100, 0);
    const char *bad = "no/file", *good = "good";
    tsw_ticket failed, fine;

    check(tsw_engine_swap_out(engine, &tensor, &bad, 1, &failed), "swap out");
    check(tsw_engine_swap_out(engine, &tensor, &good, 1, &fine), "swap out");
    EXPECT_ERROR(tsw_engine_wait_all(engine, TSW_WAIT_FOREVER), TSW_ERR_NOT_FOUND, "no/file");
    EXPECT_STATUS(tsw_ticket_wait(engine, failed, 0, NULL), TSW_ERR_NOT_FOUND); /* and still its own */
    EXPECT_STATUS(tsw_ticket_wait(engine, fine, 0, NULL), TSW_OK);
}

static void cancel(void)
{
    tsw_ticket tickets[MANY];
    int cancelled = 0;

    submit_many(tickets);
    for (int i = 0; i < MANY; i++)
        EXPECT_STATUS(tsw_ticket_cancel(engine, tickets[i]), TSW_OK);
    EXPECT_STATUS(tsw_ticket_cancel(engine, tickets[MANY - 1]), TSW_OK); /* again */
    for (int i = 0; i < MANY; i++) {
        const tsw_status status = tsw_ticket_wait(engine, tickets[i], TSW_WAIT_FOREVER, NULL);
        EXPECT(status == TSW_OK || status == TSW_ERR_CANCELLED);
        cancelled += status == TSW_ERR_CANCELLED;
    }
    EXPECT(cancelled > 0);
    EXPECT_STATUS(swap_out(engine, bytes_at(data, LEN, 0), "slow"), TSW_OK);
}

/* Waits as long as it takes; the other thread's short look may come between. */
static void *wait_for(void *ticket)
{
    tsw_status status;
    do
        status = tsw_ticket_wait(engine, *(tsw_ticket *)ticket, TSW_WAIT_FOREVER, NULL);
    while (status == TSW_ERR_BUSY);
    EXPECT(status == TSW_OK || status == TSW_ERR_BAD_TICKET);
    return NULL;
}

static void second_waiter(void)
{
    int busy = 0;
    for (int attempt = 0; attempt < 20 && busy == 0; attempt++) {
        tsw_completion completion = {.struct_size = sizeof completion};
        tsw_status status = TSW_ERR_TIMED_OUT;
        tsw_ticket tickets[MANY];
        pthread_t thread;
        size_t len;

        submit_many(tickets);
        pthread_create(&thread, NULL, wait_for, &tickets[MANY - 1]);
        while (status == TSW_ERR_TIMED_OUT) { /* until the other thread waits */
            pause_ms(1);
            status = tsw_ticket_wait(engine, tickets[MANY - 1], 0, NULL);
        }
        EXPECT(status == TSW_ERR_BUSY || status == TSW_OK || status == TSW_ERR_BAD_TICKET);
        busy += status == TSW_ERR_BUSY;
        pthread_join(thread, NULL);
        /* Poll delivers the others, and never the one that was waited for. */
        check(tsw_engine_wait_all(engine, TSW_WAIT_FOREVER), "wait all");
        for (int i = 0; i < MANY - 1; i++) {
            completion.struct_size = sizeof completion;
            EXPECT_STATUS(tsw_ticket_poll(engine, &completion, 1, &len), TSW_OK);
            EXPECT(len == 1 && completion.ticket == tickets[i]);
        }
        completion.struct_size = sizeof completion;
        EXPECT_STATUS(tsw_ticket_poll(engine, &completion, 1, &len), TSW_OK);
        EXPECT(len == 0);
    }
    EXPECT(busy > 0);
}

int main(void)
{
    engine = new_engine(NULL, NULL);
    data = check_memory(malloc(LEN));
    fill(data, LEN, 3);
    timeouts();
    poll_with_a_stride();
    wait_all_tells_the_first_error();
    cancel();
    second_waiter();
    tsw_engine_free(engine);
    free(data);
    return result();
}
