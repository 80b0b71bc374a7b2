/* Snapshots beside training, brought back elsewhere in other types, and what the two calls refuse. */
#include "optimizer.h"

enum { PARAMETERS = 3 };

static const uint64_t numels[PARAMETERS] = {1, 70000, 700001};

static tsw_optimizer *opened(tsw_engine *engine, const char *path, const char *mode,
                             uint32_t moments)
{
    tsw_optimizer *optimizer = NULL;
    check(open_store(engine, &optimizer, "path", path, "store", mode, (const char *)NULL), path);
    add_states(optimizer, TSW_F32, moments);
    return optimizer;
}

/* A step in which every state of every parameter gets new values. */
static void train(tsw_optimizer *optimizer, uint64_t step)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;

    check(tsw_optimizer_step_begin(optimizer, NULL, 0), "step begin");
    while ((status = tsw_optimizer_step_next(optimizer, &view)) == TSW_OK) {
        for (uint32_t state = 0; state < view.states_len; state++)
            for (uint64_t i = 0; i < view.numel; i++)
                ((float *)view.states[state].data)[i] = value_of(step * 10 + state, i);
        check(tsw_optimizer_step_done(optimizer, view.id, 1), "step done");
    }
    EXPECT_STATUS(status, TSW_END);
    check(tsw_optimizer_step_end(optimizer), "step end");
}

/* Whether everything is of this step. */
static int is_of(tsw_optimizer *optimizer, uint64_t step)
{
    int good = tsw_optimizer_step_number(optimizer) == step;

    for (uint64_t id = 0; id < PARAMETERS; id++)
        for (int state = 0; state < STATES; state++) {
            float *values = new_values(step * 10 + (uint64_t)state, numels[id]);
            good &= state_is(optimizer, id, state, values, numels[id]);
            free(values);
        }
    return good;
}

static void round_trip(tsw_engine *engine)
{
    tsw_optimizer *optimizer = opened(engine, "a,b=2,c", "new", TSW_F32);
    tsw_completion completion = {.struct_size = sizeof completion};
    tsw_ticket ticket = 7, second = 7;
    uint64_t done, total;
    char data[8];

    EXPECT_ERROR(tsw_optimizer_snapshot(optimizer, "none", &ticket), TSW_ERR_INVALID_ARGUMENT,
                 "nothing was committed");
    EXPECT(ticket == 0);
    for (uint64_t id = 0; id < PARAMETERS; id++)
        check(tsw_optimizer_add_parameter(optimizer, id, NULL, numels[id]), "add parameter");
    train(optimizer, 1);
    check(tsw_optimizer_set_user_data(optimizer, "cursor", 7), "user data");
    train(optimizer, 2);

    /* The copy is of the second step, whatever comes after it. */
    EXPECT_STATUS(tsw_optimizer_snapshot(optimizer, "snaps/one", &ticket), TSW_OK);
    EXPECT_STATUS(tsw_ticket_progress(engine, ticket, &done, &total), TSW_OK);
    EXPECT(total >= STATES * 4 * (numels[0] + numels[1] + numels[2]) && done <= total);
    for (uint64_t step = 3; step < 7; step++)
        train(optimizer, step);
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, &completion), TSW_OK);
    EXPECT(completion.bytes_done == total);
    EXPECT_ERROR(tsw_optimizer_snapshot(optimizer, "snaps/one", &ticket), TSW_ERR_IO, "snaps/one");
    EXPECT(is_of(optimizer, 6));

    EXPECT_STATUS(tsw_optimizer_snapshot(optimizer, "snaps/two", &ticket), TSW_OK);
    if (tsw_optimizer_snapshot(optimizer, "snaps/three", &second) == TSW_OK)
        EXPECT_STATUS(tsw_ticket_wait(engine, second, TSW_WAIT_FOREVER, NULL), TSW_OK);
    else
        EXPECT_ERROR(tsw_optimizer_snapshot(optimizer, "snaps/two", &second), TSW_ERR_BUSY, "");
    EXPECT_STATUS(tsw_ticket_cancel(engine, ticket), TSW_OK);
    switch (tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL)) {
    case TSW_OK:
        EXPECT(file_len("snaps/two/manifest.json") > 0);
        break;
    case TSW_ERR_CANCELLED:
        EXPECT(file_len("snaps/two") == -1 && file_len("snaps/two.partial") == -1);
        break;
    default:
        EXPECT(!"a cancelled snapshot ends as cancelled, or whole");
    }
    EXPECT_ERROR(tsw_optimizer_restore(optimizer, "snaps/one"), TSW_ERR_INVALID_ARGUMENT,
                 "has parameters");
    tsw_optimizer_free(optimizer);

    optimizer = opened(engine, "elsewhere", "new", TSW_F32);
    EXPECT_ERROR(tsw_optimizer_restore(optimizer, "snaps/nothing"), TSW_ERR_NOT_FOUND, "nothing");
    EXPECT_STATUS(tsw_optimizer_restore(optimizer, "snaps/one"), TSW_OK);
    EXPECT(tsw_optimizer_parameters_len(optimizer) == PARAMETERS && is_of(optimizer, 2));
    EXPECT(tsw_optimizer_get_user_data(optimizer, data, sizeof data) == 7
           && strcmp(data, "cursor") == 0);
    train(optimizer, 3);
    EXPECT(is_of(optimizer, 3));
    tsw_optimizer_free(optimizer);

    /* It was committed. */
    optimizer = opened(engine, "elsewhere", "existing", TSW_F32);
    for (uint64_t id = 0; id < PARAMETERS; id++)
        check(tsw_optimizer_add_parameter(optimizer, id, NULL, numels[id]), "add parameter");
    EXPECT(tsw_optimizer_step_number(optimizer) >= 2);
    EXPECT_USABLE(optimizer);
    tsw_optimizer_free(optimizer);

    /* Narrower moments: the masters are the same bits. */
    optimizer = opened(engine, "narrow", "new", TSW_BF16);
    EXPECT_STATUS(tsw_optimizer_restore(optimizer, "snaps/one"), TSW_OK);
    for (uint64_t id = 0; id < PARAMETERS; id++) {
        float *values = new_values(20 + MASTER, numels[id]);
        EXPECT(state_is(optimizer, id, MASTER, values, numels[id]));
        free(values);
    }
    EXPECT_USABLE(optimizer);
    tsw_optimizer_free(optimizer);
}

static void refusals(tsw_engine *engine)
{
    tsw_optimizer *optimizer = opened(engine, "refusals", "new", TSW_F32);
    tsw_ticket ticket = 7;
    FILE *file;

    EXPECT_STATUS(tsw_optimizer_snapshot(NULL, "x", &ticket), TSW_ERR_NULL_ARGUMENT);
    EXPECT(ticket == 0);
    EXPECT_ERROR(tsw_optimizer_snapshot(optimizer, NULL, &ticket), TSW_ERR_NULL_ARGUMENT,
                 "directory");
    EXPECT_ERROR(tsw_optimizer_snapshot(optimizer, "x", NULL), TSW_ERR_NULL_ARGUMENT, "ticket_out");
    EXPECT_STATUS(tsw_optimizer_restore(NULL, "x"), TSW_ERR_NULL_ARGUMENT);
    EXPECT_ERROR(tsw_optimizer_restore(optimizer, NULL), TSW_ERR_NULL_ARGUMENT, "directory");

    /* A manifest that somebody changed. */
    file = fopen("snaps/one/manifest.json", "r+");
    EXPECT(file != NULL && fseek(file, 40, SEEK_SET) == 0 && fputc('~', file) == '~');
    if (file != NULL)
        fclose(file);
    EXPECT_ERROR(tsw_optimizer_restore(optimizer, "snaps/one"), TSW_ERR_CORRUPT, "manifest.json");
    tsw_optimizer_free(optimizer);

    /* Directories that are not as they were. */
    EXPECT_ERROR(open_store(engine, &optimizer, "path", "a,c,b", (const char *)NULL),
                 TSW_ERR_CORRUPT, "c/rank0/data");
    EXPECT_ERROR(open_store(engine, &optimizer, "path", "a,b", (const char *)NULL), TSW_ERR_CORRUPT,
                 "the store has 3 directories");
    EXPECT_ERROR(open_store(engine, &optimizer, "path", "a,b,gone", (const char *)NULL),
                 TSW_ERR_NOT_FOUND, "gone");
    EXPECT(file_len("gone") == -1);
}

/* Paths are those of the directory that the program worked in when it named them. */
static void works_elsewhere(tsw_engine *engine)
{
    tsw_optimizer *optimizer = opened(engine, "here", "new", TSW_F32);
    tsw_ticket ticket;

    for (uint64_t id = 0; id < PARAMETERS; id++)
        check(tsw_optimizer_add_parameter(optimizer, id, NULL, numels[id]), "add parameter");
    train(optimizer, 1);
    EXPECT_STATUS(tsw_optimizer_snapshot(optimizer, "there/one", &ticket), TSW_OK);
    EXPECT(mkdir("elsewhere_entirely", 0700) == 0 && chdir("elsewhere_entirely") == 0);
    train(optimizer, 2);
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_snapshot(optimizer, "two", &ticket), TSW_OK);
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT(is_of(optimizer, 2));
    EXPECT(file_len("../there/one/manifest.json") > 0 && file_len("two/manifest.json") > 0);
    EXPECT(file_len("here") == -1);
    tsw_optimizer_free(optimizer);
    EXPECT(chdir("..") == 0);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);

    round_trip(engine);
    works_elsewhere(engine);
    refusals(engine);
    tsw_engine_free(engine);
    return result();
}
