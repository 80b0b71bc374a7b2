/* A ticket is good for one delivery. Later, or made up, it is refused and never mistaken for
 * another one. */
#include "test.h"

static char data[4096];

static tsw_ticket submit(tsw_engine *engine)
{
    const tsw_tensor tensor = bytes_at(data, sizeof data, 0);
    const char *path = "file";
    tsw_ticket ticket;
    check(tsw_engine_swap_out(engine, &tensor, &path, 1, &ticket), "swap out");
    return ticket;
}

static void expect_refused(tsw_engine *engine, tsw_ticket ticket)
{
    tsw_completion completion = {.struct_size = sizeof completion};
    uint64_t done = 7, total = 7;

    EXPECT_ERROR(tsw_ticket_wait(engine, ticket, 0, NULL), TSW_ERR_BAD_TICKET, "not alive");
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, &completion),
                  TSW_ERR_BAD_TICKET);
    EXPECT(completion.ticket == 0 && completion.status == TSW_ERR_BAD_TICKET);
    EXPECT_STATUS(tsw_ticket_cancel(engine, ticket), TSW_ERR_BAD_TICKET);
    EXPECT_STATUS(tsw_ticket_progress(engine, ticket, &done, &total), TSW_ERR_BAD_TICKET);
    EXPECT(done == 0 && total == 0);
}

int main(void)
{
    tsw_engine *engine = new_engine("tickets_max", "2"), *other = new_engine(NULL, NULL);
    tsw_completion completion = {.struct_size = sizeof completion};
    tsw_ticket first, ticket, alive;
    size_t len;

    expect_refused(engine, 0);
    expect_refused(engine, 1);
    expect_refused(engine, UINT64_MAX);

    first = submit(engine);
    EXPECT(first != 0);
    expect_refused(other, first); /* another engine's */
    expect_refused(engine, first ^ (UINT64_C(1) << 40));
    EXPECT_STATUS(tsw_ticket_wait(engine, first, TSW_WAIT_FOREVER, &completion), TSW_OK);
    EXPECT(completion.ticket == first && completion.bytes_done == sizeof data);
    EXPECT(completion.failed_index == UINT64_MAX && completion.message[0] == '\0');
    expect_refused(engine, first);

    /* Delivered by poll. */
    ticket = submit(engine);
    EXPECT_STATUS(tsw_engine_wait_all(engine, TSW_WAIT_FOREVER), TSW_OK);
    EXPECT_STATUS(tsw_ticket_poll(engine, &completion, 1, &len), TSW_OK);
    EXPECT(len == 1 && completion.ticket == ticket);
    expect_refused(engine, ticket);

    /* The same slots over and over, and the first ticket stays dead. */
    for (int i = 0; i < 1000; i++) {
        alive = submit(engine);
        EXPECT(alive != first);
        EXPECT_STATUS(tsw_ticket_cancel(engine, first), TSW_ERR_BAD_TICKET);
        EXPECT_STATUS(tsw_ticket_wait(engine, alive, TSW_WAIT_FOREVER, NULL), TSW_OK);
    }

    /* With tickets_max tickets alive a submission is refused and starts nothing. */
    ticket = submit(engine);
    alive = submit(engine);
    {
        const tsw_tensor tensor = bytes_at(data, sizeof data, 0);
        const char *path = "never";
        tsw_ticket none = 7;
        EXPECT_ERROR(tsw_engine_swap_out(engine, &tensor, &path, 1, &none), TSW_ERR_BUSY,
                     "tickets_max");
        EXPECT(none == 0 && tsw_status_is_retryable(TSW_ERR_BUSY) == 1);
    }
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT_STATUS(tsw_ticket_wait(engine, alive, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT(file_len("never") == -1);

    tsw_engine_free(engine);
    tsw_engine_free(other);
    return result();
}
