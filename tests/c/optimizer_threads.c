/* Several threads update the records of a step; others look at figures meanwhile. What only one
 * thread may do is refused to a second one, never interleaved. */
#include "optimizer.h"

#include <pthread.h>
#include <stdatomic.h>

enum { PARAMETERS = 40, THREADS = 4, STEPS = 5 };

static tsw_engine *engine;
static tsw_optimizer *optimizer;
static atomic_int stop, updates;

static uint64_t numel_of(uint64_t id)
{
    return 1 + id * 997;
}

static void *update_records(void *argument)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;
    (void)argument;

    while ((status = tsw_optimizer_step_next(optimizer, &view)) == TSW_OK) {
        update_view(&view);
        atomic_fetch_add(&updates, 1);
        EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_OK);
    }
    EXPECT_STATUS(status, TSW_END);
    return NULL;
}

/* What any thread may do at any time, and what it may try. */
static void *look(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        tsw_optimizer_stats stats = {.struct_size = sizeof stats};
        tsw_timer timer = {.struct_size = sizeof timer};
        uint64_t id, numel;
        char data[16];
        const size_t index = (size_t)atomic_load(&updates) % PARAMETERS;
        tsw_status status;

        EXPECT_STATUS(tsw_optimizer_get_stats(optimizer, &stats), TSW_OK);
        EXPECT(tsw_optimizer_step_number(optimizer) <= STEPS);
        EXPECT_STATUS(tsw_optimizer_parameter_at(optimizer, index, &id, &numel), TSW_OK);
        EXPECT(id == index && numel == numel_of(id));
        EXPECT(tsw_optimizer_parameters_len(optimizer) == PARAMETERS);
        EXPECT(tsw_optimizer_get_user_data(optimizer, data, sizeof data) <= sizeof data);
        EXPECT_STATUS(tsw_optimizer_get_timer(optimizer, "swap_in_state", &timer), TSW_OK);
        EXPECT(tsw_engine_prometheus(engine, NULL, 0) > 0);
        /* A step is open, or another thread is inside. */
        status = tsw_optimizer_purge_state(optimizer);
        EXPECT(status == TSW_ERR_BUSY);
        pause_ms(1);
    }
    return NULL;
}

static void step(uint64_t number)
{
    pthread_t threads[THREADS], watcher;

    for (uint64_t id = 0; id < PARAMETERS; id++) {
        float *gradient = new_values(id + number, numel_of(id));
        EXPECT_STATUS(put_gradient(optimizer, id, gradient, numel_of(id)), TSW_OK);
        free(gradient);
    }
    atomic_store(&stop, 0);
    atomic_store(&updates, 0);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK);
    pthread_create(&watcher, NULL, look, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, update_records, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&stop, 1);
    pthread_join(watcher, NULL);
    EXPECT(atomic_load(&updates) == PARAMETERS);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_OK);
}

static void *abort_step(void *argument)
{
    tsw_status status;
    (void)argument;
    while ((status = tsw_optimizer_step_abort(optimizer)) == TSW_ERR_BUSY)
        pause_ms(1);
    EXPECT_STATUS(status, TSW_OK);
    return NULL;
}

/* Threads in the middle of a step when another one aborts it: they are told, and it ends. */
static void *update_until_cancelled(void *argument)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;
    (void)argument;
    while ((status = tsw_optimizer_step_next(optimizer, &view)) == TSW_OK) {
        memset(view.states[MASTER].data, 0x55, view.numel * sizeof(float));
        pause_ms(2);
        EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_OK);
    }
    /* BUSY where the abort was over before this thread asked again. */
    EXPECT(status == TSW_ERR_CANCELLED || status == TSW_END || status == TSW_ERR_BUSY);
    return NULL;
}

static void aborted_meanwhile(void)
{
    pthread_t threads[THREADS], aborting;

    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, update_until_cancelled, NULL);
    pause_ms(4);
    pthread_create(&aborting, NULL, abort_step, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(aborting, NULL);
    EXPECT(tsw_optimizer_step_number(optimizer) == STEPS);
}

static void verify(void)
{
    for (uint64_t id = 0; id < PARAMETERS; id++) {
        float *states[STATES];
        for (int state = 0; state < STATES; state++)
            states[state] = new_floats(numel_of(id));
        for (uint64_t number = 1; number <= STEPS; number++) {
            float *gradient = new_values(id + number, numel_of(id));
            update(states, gradient, numel_of(id));
            free(gradient);
        }
        for (int state = 0; state < STATES; state++) {
            EXPECT(state_is(optimizer, id, state, states[state], numel_of(id)));
            free(states[state]);
        }
    }
}

int main(void)
{
    engine = new_engine(NULL, NULL);
    check(open_store(engine, &optimizer, "views_max", "4", NULL), "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    for (uint64_t id = 0; id < PARAMETERS; id++)
        check(tsw_optimizer_add_parameter(optimizer, id, NULL, numel_of(id)), "parameter");
    for (uint64_t number = 1; number <= STEPS; number++)
        step(number);
    verify();
    aborted_meanwhile();
    verify();
    tsw_optimizer_free(optimizer);
    tsw_engine_free(engine);
    return result();
}
