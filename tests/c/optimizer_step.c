/* A whole training through the steps, under many configurations: committed, reopened, gone on with,
 * and every bit as in memory. */
#include "optimizer.h"

enum { PARAMETERS = 5, STEPS = 4 };

static const uint64_t ids[PARAMETERS] = {7, 3, 1000000007, 0, 42};
static const uint64_t numels[PARAMETERS] = {300050, 1, 65536, 4097, 70001};

/* The same training in memory; storage rounds moments of a narrow type whenever they go out. */
struct expected {
    float *states[PARAMETERS][STATES];
    uint32_t moments;
};

/* The nearest bf16, ties to even. */
static float rounded(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

static void expected_begin(struct expected *expected, uint32_t moments)
{
    expected->moments = moments;
    for (int i = 0; i < PARAMETERS; i++)
        for (int state = 0; state < STATES; state++)
            expected->states[i][state] = state == MASTER ? new_values(ids[i], numels[i])
                                                         : new_floats(numels[i]);
}

static void expected_end(struct expected *expected)
{
    for (int i = 0; i < PARAMETERS; i++)
        for (int state = 0; state < STATES; state++)
            free(expected->states[i][state]);
}

static uint64_t gradient_seed(int i, uint64_t step)
{
    return ids[i] + 1000 * step;
}

static void expected_step(struct expected *expected, uint64_t step)
{
    for (int i = 0; i < PARAMETERS; i++) {
        float *gradient = new_values(gradient_seed(i, step), numels[i]);
        update(expected->states[i], gradient, numels[i]);
        for (int state = EXP_AVG; state < STATES && expected->moments == TSW_BF16; state++)
            for (uint64_t j = 0; j < numels[i]; j++)
                expected->states[i][state][j] = rounded(expected->states[i][state][j]);
        free(gradient);
    }
}

static int is_expected(tsw_optimizer *optimizer, struct expected *expected)
{
    int equal = 1;
    for (int i = 0; i < PARAMETERS; i++)
        for (int state = 0; state < STATES; state++)
            equal &= state_is(optimizer, ids[i], state, expected->states[i][state], numels[i]);
    return equal;
}

static int index_of(uint64_t id)
{
    int i = 0;
    while (i < PARAMETERS - 1 && ids[i] != id)
        i++;
    return i;
}

static void check_view(const tsw_parameter_view *view)
{
    EXPECT(view->struct_size == sizeof *view && view->states_len == STATES);
    EXPECT(view->numel == numels[index_of(view->id)]);
    EXPECT(view->gradient.data != NULL && view->gradient.numel == view->numel);
    EXPECT(view->gradient.dtype == TSW_F32);
    for (int state = 0; state < STATES; state++) {
        EXPECT(view->states[state].numel == view->numel && view->states[state].dtype == TSW_F32);
        EXPECT((uintptr_t)view->states[state].data % 64 == 0);
    }
    EXPECT((uintptr_t)view->gradient.data % 64 == 0);
    EXPECT(view->states[STATES].data == NULL);
}

static void step(tsw_optimizer *optimizer, uint64_t number)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;
    int seen[PARAMETERS] = {0};

    EXPECT_STATUS(tsw_optimizer_pre_backward(optimizer), TSW_OK);
    for (int i = PARAMETERS - 1; i >= 0; i--) {
        float *gradient = new_values(gradient_seed(i, number), numels[i]);
        EXPECT_STATUS(put_gradient(optimizer, ids[i], gradient, numels[i]), TSW_OK);
        free(gradient);
    }
    EXPECT_STATUS(tsw_optimizer_flush_gradients(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_post_backward(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK);
    while ((status = tsw_optimizer_step_next(optimizer, &view)) == TSW_OK) {
        check_view(&view);
        seen[index_of(view.id)]++;
        update_view(&view);
        EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_OK);
    }
    EXPECT_STATUS(status, TSW_END);
    for (int i = 0; i < PARAMETERS; i++)
        EXPECT(seen[i] == 1);
    EXPECT_STATUS(tsw_optimizer_set_user_data(optimizer, &number, sizeof number), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_OK);
    EXPECT(tsw_optimizer_step_number(optimizer) == number);
}

static tsw_optimizer *open_all(tsw_engine *engine, const char *mode, uint32_t moments,
                               const char *key, const char *value)
{
    tsw_optimizer *optimizer;
    check(open_store(engine, &optimizer, "store", mode, key, value, NULL), key);
    add_states(optimizer, TSW_F32, moments);
    for (int i = 0; i < PARAMETERS; i++)
        check(tsw_optimizer_add_parameter(optimizer, ids[i], "any name", numels[i]), "parameter");
    return optimizer;
}

static void check_figures(const tsw_optimizer *optimizer)
{
    tsw_optimizer_stats stats = {.struct_size = sizeof stats};
    tsw_timer timer = {.struct_size = sizeof timer};
    const char *names[16];
    const size_t len = tsw_optimizer_timer_names(optimizer, names, 16);

    EXPECT_STATUS(tsw_optimizer_get_stats(optimizer, &stats), TSW_OK);
    EXPECT(stats.struct_size == sizeof stats && stats.reserved == 0);
    EXPECT(stats.parameters_count == PARAMETERS);
    EXPECT(stats.steps_count == tsw_optimizer_step_number(optimizer));
    EXPECT(stats.durable_step == stats.steps_count && stats.commits_count >= 1);
    EXPECT(stats.cache_hits_count + stats.cache_misses_count >= PARAMETERS * STEPS);
    EXPECT(stats.pinned_peak_bytes > 0 && stats.pinned_peak_bytes >= stats.pinned_used_bytes);
    EXPECT(stats.pinned_computed_bytes >= stats.pinned_peak_bytes);
    EXPECT(stats.written_bytes >= 300050 * sizeof(float) && stats.checksum_errors_count == 0);
    EXPECT(stats.step_ns > 0 && stats.update_ns > 0);
    EXPECT(len > 0 && len <= 9);
    for (size_t i = 0; i < len && i < 16; i++) {
        EXPECT_STATUS(tsw_optimizer_get_timer(optimizer, names[i], &timer), TSW_OK);
        EXPECT(timer.count > 0 && timer.min_ns <= timer.max_ns);
    }
    EXPECT_ERROR(tsw_optimizer_get_timer(optimizer, "no such timer", &timer),
                 TSW_ERR_INVALID_ARGUMENT, "no such timer");
}

static void check_metrics(tsw_engine *engine)
{
    const size_t cap = tsw_engine_prometheus(engine, NULL, 0) + 1024;
    char *text = check_memory(malloc(cap));
    EXPECT(tsw_engine_prometheus(engine, text, cap) == strlen(text));
    EXPECT(strstr(text, "tensorswap_optimizer_steps{optimizer=\"") != NULL);
    free(text);
}

static void train(tsw_engine *engine, uint32_t moments, const char *key, const char *value)
{
    struct expected expected;
    tsw_optimizer *optimizer = open_all(engine, "new", moments, key, value);
    uint64_t number = 0, id, numel;
    const int failures_before = failures;

    expected_begin(&expected, moments);
    EXPECT(tsw_optimizer_step_number(optimizer) == 0);
    for (int i = 0; i < PARAMETERS; i++) {
        const tsw_tensor source = floats(expected.states[i][MASTER], numels[i]);
        EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, &ids[i], &source, 1), TSW_OK);
    }
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    EXPECT(tsw_optimizer_step_number(optimizer) == 0);
    EXPECT(is_expected(optimizer, &expected));
    for (uint64_t i = 1; i <= STEPS; i++) {
        step(optimizer, i);
        expected_step(&expected, i);
        if (i == 1)
            EXPECT(is_expected(optimizer, &expected)); /* before it is durable */
    }
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    check_figures(optimizer);
    check_metrics(engine);
    EXPECT(is_expected(optimizer, &expected));
    tsw_optimizer_free(optimizer);

    /* Another run: everything is there, and it goes on. */
    optimizer = open_all(engine, "existing", moments, key, value);
    EXPECT(tsw_optimizer_step_number(optimizer) == STEPS);
    EXPECT(tsw_optimizer_get_user_data(optimizer, &number, sizeof number) == sizeof number);
    EXPECT(number == STEPS);
    EXPECT(tsw_optimizer_parameters_len(optimizer) == PARAMETERS);
    for (size_t i = 0; i < PARAMETERS; i++) {
        EXPECT_STATUS(tsw_optimizer_parameter_at(optimizer, i, &id, &numel), TSW_OK);
        EXPECT(id == ids[i] && numel == numels[i]);
    }
    EXPECT(is_expected(optimizer, &expected));
    for (uint64_t i = STEPS + 1; i <= STEPS + 2; i++) {
        step(optimizer, i);
        expected_step(&expected, i);
    }
    EXPECT(is_expected(optimizer, &expected));

    /* Moments back to zero; the masters stay. */
    EXPECT_STATUS(tsw_optimizer_purge_state(optimizer), TSW_OK);
    for (int i = 0; i < PARAMETERS; i++)
        for (int state = EXP_AVG; state < STATES; state++)
            memset(expected.states[i][state], 0, numels[i] * sizeof(float));
    EXPECT(is_expected(optimizer, &expected));
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    tsw_optimizer_free(optimizer);
    optimizer = open_all(engine, "auto", moments, key, value);
    EXPECT(tsw_optimizer_step_number(optimizer) == STEPS + 2);
    EXPECT(is_expected(optimizer, &expected));
    tsw_optimizer_free(optimizer);
    expected_end(&expected);
    if (failures > failures_before)
        printf("... with %s=%s, moments %s\n", key, value, tsw_dtype_name(moments));
}

/* What was not committed is dropped; a step over some parameters leaves the others alone. */
static void uncommitted(tsw_engine *engine)
{
    struct expected expected;
    tsw_optimizer *optimizer = open_all(engine, "new", TSW_F32, "sync", "none");
    tsw_parameter_view view = {.struct_size = sizeof view};

    expected_begin(&expected, TSW_F32);
    for (int i = 0; i < PARAMETERS; i++)
        memset(expected.states[i][MASTER], 0, numels[i] * sizeof(float));
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, ids + 1, 1), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &view), TSW_OK);
    EXPECT(view.id == ids[1] && view.gradient.data == NULL);
    *(float *)view.states[MASTER].data = 1;
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &view), TSW_END);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_OK);
    EXPECT(tsw_optimizer_step_number(optimizer) == 1);
    EXPECT(!is_expected(optimizer, &expected));
    tsw_optimizer_free(optimizer);

    optimizer = open_all(engine, "existing", TSW_F32, "sync", "none");
    EXPECT(tsw_optimizer_step_number(optimizer) == 0);
    EXPECT(is_expected(optimizer, &expected));
    tsw_optimizer_free(optimizer);
    expected_end(&expected);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);

    train(engine, TSW_F32, "sync", "commit");
    train(engine, TSW_F32, "sync", "none");
    train(engine, TSW_F32, "cache_bytes", "1MiB");
    train(engine, TSW_BF16, "cache_bytes", "1GiB");
    train(engine, TSW_BF16, "views_max", "1");
    train(engine, TSW_BF16, "checksum", "off");
    uncommitted(engine);
    tsw_engine_free(engine);

    engine = new_engine("backend", "threads");
    train(engine, TSW_F32, "pipeline_read", "false");
    train(engine, TSW_F32, "pipeline_write", "false");
    tsw_engine_free(engine);
    return result();
}
