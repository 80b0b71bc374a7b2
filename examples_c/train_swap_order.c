/* Adam over records that are swapped in and out one by one, in an order of the caller's: what a
 * runtime does that has its own loop over parameters, as DeepSpeed's stage 3 has.
 *
 * The same training runs twice. At first with everything in the background: while one record is
 * updated the next one comes in and the one before goes out (PipelinedOptimizerSwapper). Then with
 * `pipeline_read` and `pipeline_write` at false (PartitionedOptimizerSwapper): the same calls, each
 * of which waits for storage. Both must end with the bits of a training in memory. */
#include "example.h"

#include <math.h>

enum { PARAMETERS = 6, STEPS = 5, MASTER = 0, EXP_AVG, EXP_AVG_SQ, STATES };

static const char *const state_names[STATES] = {"master", "exp_avg", "exp_avg_sq"};

/* Ids are names that the caller chooses; sizes need not be round. */
static const uint64_t ids[PARAMETERS] = {10, 11, 12, 20, 21, 22};
static const uint64_t numels[PARAMETERS] = {1000000, 300050, 1, 786432, 12345, 1500001};

static float gradient_of(uint64_t id, uint64_t i, int step)
{
    return (float)((i * 37 + id * 11 + (uint64_t)step * 5) % 101) / 101.0f - 0.5f;
}

static float *new_floats(uint64_t numel)
{
    return check_memory(calloc(numel, sizeof(float)));
}

/* Adam (Kingma and Ba 2015) in place; `step` counts from 1. */
static void update(float *const states[STATES], const float *gradient, uint64_t numel, int step)
{
    const float correction1 = 1 - powf(0.9f, (float)step);
    const float correction2 = 1 - powf(0.999f, (float)step);

    for (uint64_t i = 0; i < numel; i++) {
        float *const average = &states[EXP_AVG][i], *const square = &states[EXP_AVG_SQ][i];
        *average = 0.9f * *average + 0.1f * gradient[i];
        *square = 0.999f * *square + 0.001f * gradient[i] * gradient[i];
        states[MASTER][i] -=
            1e-3f * (*average / correction1) / (sqrtf(*square / correction2) + 1e-8f);
    }
}

/* ---- the training on storage ---- */

static tsw_optimizer *open_store(tsw_engine *engine, const char *directory, const char *pipelined)
{
    tsw_config *config = check_memory(tsw_config_new());
    tsw_optimizer *optimizer;

    check(tsw_config_set(config, "path", directory), "path");
    check(tsw_config_set(config, "store", "new"), "store");
    check(tsw_config_set(config, "pipeline_read", pipelined), "pipeline_read");
    check(tsw_config_set(config, "pipeline_write", pipelined), "pipeline_write");
    check(tsw_optimizer_new(engine, config, &optimizer), "optimizer");
    tsw_config_free(config);
    for (int state = 0; state < STATES; state++)
        check(tsw_optimizer_add_state(optimizer, state_names[state], TSW_F32, TSW_F32), "state");
    for (int i = 0; i < PARAMETERS; i++)
        check(tsw_optimizer_add_parameter(optimizer, ids[i], NULL, numels[i]), "parameter");
    return optimizer; /* nothing was initialized: every state is zero */
}

static void swap_out_gradients(tsw_optimizer *optimizer, int step)
{
    for (int i = 0; i < PARAMETERS; i++) {
        float *values = new_floats(numels[i]);
        const tsw_tensor gradient = {.data = values, .numel = numels[i], .dtype = TSW_F32};
        const uint64_t offset = 0;
        for (uint64_t j = 0; j < numels[i]; j++)
            values[j] = gradient_of(ids[i], j, step);
        check(tsw_optimizer_swap_out_gradients(optimizer, ids[i], &offset, &gradient, 1),
              "swap out gradients");
        free(values); /* ours again since the call returned */
    }
}

static void step_on_storage(tsw_optimizer *optimizer, int step)
{
    tsw_parameter_view view = {.struct_size = sizeof view};

    swap_out_gradients(optimizer, step);
    for (int i = 0; i < PARAMETERS; i++) {
        const int is_last = i + 1 == PARAMETERS;
        const uint64_t next_id = is_last ? TSW_NO_PARAMETER : ids[i + 1];
        check(tsw_optimizer_swap_in_state(optimizer, ids[i], next_id, &view), "swap in");
        {
            float *const states[STATES] = {view.states[MASTER].data, view.states[EXP_AVG].data,
                                           view.states[EXP_AVG_SQ].data};
            update(states, view.gradient.data, view.numel, step);
        }
        check(tsw_optimizer_swap_out_state(optimizer, ids[i], is_last ? 0 : 1), "swap out");
    }

    /* One that is only looked at is not written back. */
    check(tsw_optimizer_swap_in_state(optimizer, ids[0], TSW_NO_PARAMETER, &view), "swap in");
    check(tsw_optimizer_release_state(optimizer, ids[0]), "release");
    check(tsw_optimizer_commit(optimizer), "commit"); /* counts the step and makes it durable */
}

static void show_timers(const tsw_optimizer *optimizer)
{
    const char *names[16];
    const size_t len = tsw_optimizer_timer_names(optimizer, names, 16);

    for (size_t i = 0; i < len && i < 16; i++) {
        tsw_timer timer = {.struct_size = sizeof timer};
        check(tsw_optimizer_get_timer(optimizer, names[i], &timer), names[i]);
        printf("  %-26s %4llu times, %8.1f ms\n", names[i], (unsigned long long)timer.count,
               ms(timer.total_ns));
    }
}

/* ---- the same in memory ---- */

static void train_in_memory(float *states[PARAMETERS][STATES])
{
    for (int i = 0; i < PARAMETERS; i++) {
        float *gradient = new_floats(numels[i]);
        for (int state = 0; state < STATES; state++)
            states[i][state] = new_floats(numels[i]);
        for (int step = 1; step <= STEPS; step++) {
            for (uint64_t j = 0; j < numels[i]; j++)
                gradient[j] = gradient_of(ids[i], j, step);
            update(states[i], gradient, numels[i], step);
        }
        free(gradient);
    }
}

static int verify(tsw_optimizer *optimizer, float *expected[PARAMETERS][STATES])
{
    uint64_t len_bytes = 0;

    for (int i = 0; i < PARAMETERS; i++)
        for (int state = 0; state < STATES; state++) {
            float *values = new_floats(numels[i]);
            const tsw_tensor destination = {.data = values, .numel = numels[i], .dtype = TSW_F32};
            int equal;
            check(tsw_optimizer_read_state(optimizer, ids[i], state_names[state], &destination),
                  "read state");
            equal = memcmp(values, expected[i][state], numels[i] * sizeof *values) == 0;
            free(values);
            if (!equal) {
                printf("  parameter %llu: %s differs\n", (unsigned long long)ids[i],
                       state_names[state]);
                return 0;
            }
            len_bytes += numels[i] * sizeof *values;
        }
    printf("  verify: equal bit for bit (%llu bytes) after step %llu\n",
           (unsigned long long)len_bytes, (unsigned long long)tsw_optimizer_step_number(optimizer));
    return tsw_optimizer_step_number(optimizer) == STEPS;
}

int main(void)
{
    const char *directory = temporary_directory(".");
    const char *const pipelined[2] = {"true", "false"};
    float *expected[PARAMETERS][STATES];
    tsw_engine *engine;
    int good = 1;

    train_in_memory(expected);
    check(tsw_engine_new(NULL, &engine), "engine");
    for (int i = 0; i < 2 && good; i++) {
        tsw_optimizer *optimizer = open_store(engine, directory, pipelined[i]);
        printf("%s\n", i == 0 ? "pipelined:" : "one after the other:");
        for (int step = 1; step <= STEPS; step++)
            step_on_storage(optimizer, step);
        show_timers(optimizer);
        good = verify(optimizer, expected);
        tsw_optimizer_free(optimizer);
    }
    tsw_engine_free(engine);
    for (int i = 0; i < PARAMETERS; i++)
        for (int state = 0; state < STATES; state++)
            free(expected[i][state]);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
