/* What the optimizer's programs share: a store in "store" with the states of Adam, values that can
 * be made again, and comparisons of whole states. */
#ifndef OPTIMIZER_H
#define OPTIMIZER_H

#include "test.h"

enum { MASTER, EXP_AVG, EXP_AVG_SQ, STATES };

static const char *const state_names[STATES] = {"master", "exp_avg", "exp_avg_sq"};

/* Opens the store with the keys and values up to a NULL. */
static inline tsw_status open_store(tsw_engine *engine, tsw_optimizer **optimizer_out, ...)
{
    tsw_config *config = check_memory(tsw_config_new());
    va_list pairs;
    const char *key;
    tsw_status status;

    check(tsw_config_set(config, "path", "store"), "path");
    va_start(pairs, optimizer_out);
    while ((key = va_arg(pairs, const char *)) != NULL)
        check(tsw_config_set(config, key, va_arg(pairs, const char *)), key);
    va_end(pairs);
    status = tsw_optimizer_new(engine, config, optimizer_out);
    tsw_config_free(config);
    return status;
}

/* The states of Adam, f32 in memory. */
static inline void add_states(tsw_optimizer *optimizer, uint32_t master, uint32_t moments)
{
    for (int state = 0; state < STATES; state++)
        check(tsw_optimizer_add_state(optimizer, state_names[state], TSW_F32,
                                      state == MASTER ? master : moments),
              "add state");
}

static inline float *new_floats(uint64_t numel)
{
    return check_memory(calloc(numel, sizeof(float)));
}

/* A value in -0.5 .. 0.5 that f16 and bf16 cannot hold. */
static inline float value_of(uint64_t seed, uint64_t i)
{
    return (float)((i * 7919 + seed * 104729) % 10007) / 10007.0f - 0.5f;
}

static inline float *new_values(uint64_t seed, uint64_t numel)
{
    float *values = new_floats(numel);
    for (uint64_t i = 0; i < numel; i++)
        values[i] = value_of(seed, i);
    return values;
}

static inline tsw_tensor floats(float *values, uint64_t numel)
{
    return (tsw_tensor){.data = values, .numel = numel, .dtype = TSW_F32};
}

/* Whether the state holds these values, every bit. */
static inline int state_is(tsw_optimizer *optimizer, uint64_t id, int state, const float *expected,
                           uint64_t numel)
{
    float *values = check_memory(malloc(numel * sizeof *values));
    const tsw_tensor destination = floats(values, numel);
    int equal;

    memset(values, 0xff, numel * sizeof *values);
    EXPECT_STATUS(tsw_optimizer_read_state(optimizer, id, state_names[state], &destination),
                  TSW_OK);
    equal = memcmp(values, expected, numel * sizeof *values) == 0;
    free(values);
    return equal;
}

/* Swaps out the whole gradient of a parameter. */
static inline tsw_status put_gradient(tsw_optimizer *optimizer, uint64_t id, float *values,
                                      uint64_t numel)
{
    const tsw_tensor gradient = floats(values, numel);
    const uint64_t offset = 0;
    return tsw_optimizer_swap_out_gradients(optimizer, id, &offset, &gradient, 1);
}

/* Something like Adam, without its roots and powers: the same operations wherever it runs. */
static inline void update(float *const states[STATES], const float *gradient, uint64_t numel)
{
    for (uint64_t i = 0; i < numel; i++) {
        states[EXP_AVG][i] = 0.875f * states[EXP_AVG][i] + 0.125f * gradient[i];
        states[EXP_AVG_SQ][i] =
            0.96875f * states[EXP_AVG_SQ][i] + 0.03125f * gradient[i] * gradient[i];
        states[MASTER][i] -= 0.01f * states[EXP_AVG][i] / (states[EXP_AVG_SQ][i] + 0.5f);
    }
}

static inline void update_view(const tsw_parameter_view *view)
{
    float *const states[STATES] = {view->states[MASTER].data, view->states[EXP_AVG].data,
                                   view->states[EXP_AVG_SQ].data};
    EXPECT(view->gradient.data != NULL);
    if (view->gradient.data != NULL)
        update(states, view->gradient.data, view->numel);
}

/* A step over everything in which nothing changes: the object works. */
static inline void expect_usable(tsw_optimizer *optimizer, const char *file, int line)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;

    expect_status(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK, "step_begin", file, line);
    while ((status = tsw_optimizer_step_next(optimizer, &view)) == TSW_OK)
        expect_status(tsw_optimizer_step_done(optimizer, view.id, 0), TSW_OK, "step_done", file,
                      line);
    expect_status(status, TSW_END, "step_next", file, line);
    expect_status(tsw_optimizer_step_end(optimizer), TSW_OK, "step_end", file, line);
}

#define EXPECT_USABLE(optimizer) expect_usable(optimizer, __FILE__, __LINE__)

#endif
