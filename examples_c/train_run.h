/* What train_adam.c and train_adam.cpp have in common beside the model: what a run needs to go on,
 * the text that it learns, and signals that end it. */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "train_options.h"

#include <signal.h>

/* What a run needs to go on, beside the optimizer state. */
struct progress {
    uint64_t text_len, random, samples; /* the text, the random numbers, the place in the data */
    double rate, loss_first, loss_mean;
};

static inline struct progress progress_begin(const struct text *text, const struct model *model)
{
    const struct progress progress = {text->len, model->random, 0, 1e-3, 0, 0};
    return progress;
}

/* The progress after this step, which counts from 1. */
static inline void progress_advance(struct progress *progress, const struct model *model, int step,
                                    double loss)
{
    progress->random = model->random;
    progress->samples += BATCH;
    progress->rate *= 0.999;
    if (step == 1)
        progress->loss_first = progress->loss_mean = loss;
    progress->loss_mean += (loss - progress->loss_mean) * (step < 20 ? 1.0 / step : 0.05);
}

/* What storage makes of values of a state. */
static inline void round_state(const struct options *options, int state, float *values,
                               size_t count)
{
    if (options->disk_types[state] == TSW_BF16)
        for (size_t i = 0; i < count; i++)
            values[i] = nearest_bf16(values[i]);
}

/* Dies with no handler, no destructor, no flush: as a power cut for a process. */
static inline void crash(int step)
{
    printf("killed in the middle of step %d\n", step);
    fflush(stdout);
    raise(SIGKILL);
}

/* The files of the command line, or the project's own text. The caller frees its symbols. */
static inline struct text text_of_arguments(int argc, char **argv)
{
    struct text text;

    memset(&text, 0, sizeof text);
    for (int i = optind; i < argc; i++)
        text_add_file(&text, argv[i]);
    if (optind == argc)
        text_add_project(&text);
    text_finish(&text);
    if (text.len <= CONTEXT)
        fail("text", "too short to learn from");
    printf("text: %zu characters of %d kinds from %d files\n", text.len, text.used, text.files);
    return text;
}

static volatile sig_atomic_t interrupted;

/* The training ends after the step and is committed; a second signal ends at once. */
static inline void on_signal(int signal_number)
{
    interrupted = signal_number;
}

static inline void catch_signals(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = (int)SA_RESETHAND | SA_RESTART;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

#endif
