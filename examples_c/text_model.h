/* A character-level language model in plain C: the last CONTEXT characters are embedded, go through
 * two hidden layers of rectified linear units and give the probabilities of the next character.
 *
 * All parameters are one array of floats, layer after layer, and so are the gradients and both
 * moments of Adam: whoever stores them may cut them anywhere. Every sum is taken in one fixed
 * order, so that the same seed gives the same bits. */
#ifndef TEXT_MODEL_H
#define TEXT_MODEL_H

#include "text_data.h"

#include <math.h>

#ifdef __cplusplus
#define restrict __restrict /* what gcc and clang have for it in C++ */
#endif

enum {
    CONTEXT = 16,                    /* characters the model sees */
    EMBEDDING = 16,                  /* floats per character */
    INPUTS = CONTEXT * EMBEDDING,
    BATCH = 32,                      /* samples per step */
    LANES = 8,                       /* every width is a multiple: inner loops of a fixed length */
    LAYERS = 4
};

/* A matrix of inputs x outputs, then as many biases as outputs (the embedding has none). */
struct layer {
    const char *name;
    size_t inputs, outputs;
    size_t first, count; /* where it lies in the arrays of parameters */
};

struct model {
    struct layer layers[LAYERS]; /* embedding, hidden1, hidden2, output */
    size_t hidden, alphabet, parameters;
    float *weights, *gradients;
    unsigned char contexts[BATCH * CONTEXT], next[BATCH];
    float *inputs, *hidden1, *hidden2, *probabilities;    /* BATCH rows each */
    float *d_inputs, *d_hidden1, *d_hidden2, *d_logits;   /* their gradients */
    uint64_t random;
};

/* ---- numbers ---- */

/* xorshift64*: Marsaglia 2003, Vigna 2016. */
static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(0x2545f4914f6cdd1d);
}

static inline float random_between(uint64_t *state, float low, float high)
{
    return low + (high - low) * (float)(random_next(state) >> 40) / (float)(1 << 24);
}

/* The nearest value that bf16, the upper half of a float, can hold; ties to even. */
static inline float nearest_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += 0x7fff + (bits >> 16 & 1);
    bits &= 0xffff0000u;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

/* y += a x; `len` is a multiple of LANES. */
static inline void add_scaled(float *restrict y, float a, const float *restrict x, size_t len)
{
    for (size_t i = 0; i < len; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            y[i + lane] += a * x[i + lane];
}

/* The inner product; LANES sums side by side, because a compiler must not reorder one. */
static inline float dot(const float *restrict x, const float *restrict y, size_t len)
{
    float sums[LANES] = {0}, sum = 0;
    for (size_t i = 0; i < len; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            sums[lane] += x[i + lane] * y[i + lane];
    for (size_t lane = 0; lane < LANES; lane++)
        sum += sums[lane];
    return sum;
}

static inline float *new_floats(size_t len)
{
    return (float *)check_memory(calloc(len, sizeof(float)));
}

/* ---- model ---- */

static inline void layer_place(struct model *model, int index, const char *name, size_t inputs,
                               size_t outputs, size_t biases)
{
    const struct layer layer = {name, inputs, outputs, model->parameters,
                                inputs * outputs + biases};
    model->layers[index] = layer;
    model->parameters += layer.count;
}

/* Weights uniform in +-sqrt(6 / inputs), which keeps the signal's size through rectified units
 * (He et al. 2015); the embedding in +-1; biases 0. */
static inline void model_initialize_weights(struct model *model)
{
    for (int i = 0; i < LAYERS; i++) {
        const struct layer *layer = &model->layers[i];
        const float bound = i == 0 ? 1.0f : sqrtf(6.0f / (float)layer->inputs);
        for (size_t j = 0; j < layer->inputs * layer->outputs; j++)
            model->weights[layer->first + j] = random_between(&model->random, -bound, bound);
    }
}

static inline struct model *model_new(size_t alphabet, size_t hidden, uint64_t seed)
{
    struct model *model = (struct model *)check_memory(calloc(1, sizeof *model));
    model->hidden = hidden;
    model->alphabet = alphabet;
    model->random = seed * 2 + 1; /* never 0 */
    layer_place(model, 0, "embedding", alphabet, EMBEDDING, 0);
    layer_place(model, 1, "hidden1", INPUTS, hidden, hidden);
    layer_place(model, 2, "hidden2", hidden, hidden, hidden);
    layer_place(model, 3, "output", hidden, alphabet, alphabet);
    model->weights = new_floats(model->parameters);
    model->gradients = new_floats(model->parameters);
    model->inputs = new_floats(BATCH * INPUTS);
    model->hidden1 = new_floats(BATCH * hidden);
    model->hidden2 = new_floats(BATCH * hidden);
    model->probabilities = new_floats(BATCH * alphabet);
    model->d_inputs = new_floats(BATCH * INPUTS);
    model->d_hidden1 = new_floats(BATCH * hidden);
    model->d_hidden2 = new_floats(BATCH * hidden);
    model->d_logits = new_floats(BATCH * alphabet);
    model_initialize_weights(model);
    return model;
}

static inline void model_free(struct model *model)
{
    float *const arrays[] = {model->weights,   model->gradients,     model->inputs,
                             model->hidden1,   model->hidden2,       model->probabilities,
                             model->d_inputs,  model->d_hidden1,     model->d_hidden2,
                             model->d_logits};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        free(arrays[i]);
    free(model);
}

/* Draws BATCH places of the text: CONTEXT characters each, and the one that follows. */
static inline void model_draw_batch(struct model *model, const struct text *text)
{
    for (size_t b = 0; b < BATCH; b++) {
        const size_t place = (size_t)(random_next(&model->random) % (text->len - CONTEXT));
        memcpy(model->contexts + b * CONTEXT, text->symbols + place, CONTEXT);
        model->next[b] = text->symbols[place + CONTEXT];
    }
}

/* y = x W + bias for the whole batch, one row of W at a time so that it is read once. */
static inline void layer_forward(const struct model *model, int index, const float *x, float *y)
{
    const struct layer *layer = &model->layers[index];
    const float *weights = model->weights + layer->first;
    const float *bias = weights + layer->inputs * layer->outputs;

    for (size_t b = 0; b < BATCH; b++)
        memcpy(y + b * layer->outputs, bias, layer->outputs * sizeof *y);
    for (size_t i = 0; i < layer->inputs; i++)
        for (size_t b = 0; b < BATCH; b++) {
            const float value = x[b * layer->inputs + i];
            if (value < 0 || value > 0) /* about half of the rectified units are 0 */
                add_scaled(y + b * layer->outputs, value, weights + i * layer->outputs,
                           layer->outputs);
        }
}

static inline void rectify(float *x, size_t len)
{
    for (size_t i = 0; i < len; i++)
        x[i] = x[i] > 0 ? x[i] : 0;
}

/* Turns the batch's logits into probabilities; returns the mean loss in nats per character. */
static inline double softmax(struct model *model)
{
    double loss = 0;
    for (size_t b = 0; b < BATCH; b++) {
        float *row = model->probabilities + b * model->alphabet, max = row[0], sum = 0;
        for (size_t i = 1; i < model->alphabet; i++)
            max = row[i] > max ? row[i] : max;
        for (size_t i = 0; i < model->alphabet; i++)
            sum += row[i] = expf(row[i] - max);
        for (size_t i = 0; i < model->alphabet; i++)
            row[i] /= sum;
        loss -= log((double)row[model->next[b]] + 1e-30);
    }
    return loss / BATCH;
}

static inline double model_forward(struct model *model)
{
    for (size_t i = 0; i < BATCH * CONTEXT; i++)
        memcpy(model->inputs + i * EMBEDDING, model->weights + model->contexts[i] * EMBEDDING,
               EMBEDDING * sizeof(float));
    layer_forward(model, 1, model->inputs, model->hidden1);
    rectify(model->hidden1, BATCH * model->hidden);
    layer_forward(model, 2, model->hidden1, model->hidden2);
    rectify(model->hidden2, BATCH * model->hidden);
    layer_forward(model, 3, model->hidden2, model->probabilities);
    return softmax(model);
}

/* The gradients of the layer's parameters, and of its input x. Where x is rectified, a unit that
 * is 0 passes nothing back. */
static inline void layer_backward(struct model *model, int index, const float *x, int rectified,
                                  const float *d_y, float *d_x)
{
    const struct layer *layer = &model->layers[index];
    const float *weights = model->weights + layer->first;
    float *gradients = model->gradients + layer->first;
    float *d_bias = gradients + layer->inputs * layer->outputs;

    for (size_t i = 0; i < layer->inputs; i++) {
        float *row = gradients + i * layer->outputs;
        for (size_t b = 0; b < BATCH; b++) {
            const float *d = d_y + b * layer->outputs;
            const float value = x[b * layer->inputs + i];
            const int passes = !rectified || value > 0;
            if (passes)
                add_scaled(row, value, d, layer->outputs);
            d_x[b * layer->inputs + i] =
                passes ? dot(d, weights + i * layer->outputs, layer->outputs) : 0;
        }
    }
    for (size_t b = 0; b < BATCH; b++)
        add_scaled(d_bias, 1, d_y + b * layer->outputs, layer->outputs);
}

static inline void model_backward(struct model *model)
{
    memset(model->gradients, 0, model->parameters * sizeof(float));
    for (size_t b = 0; b < BATCH; b++)
        for (size_t i = 0; i < model->alphabet; i++)
            model->d_logits[b * model->alphabet + i] =
                (model->probabilities[b * model->alphabet + i] - (model->next[b] == i)) / BATCH;
    layer_backward(model, 3, model->hidden2, 1, model->d_logits, model->d_hidden2);
    layer_backward(model, 2, model->hidden1, 1, model->d_hidden2, model->d_hidden1);
    layer_backward(model, 1, model->inputs, 0, model->d_hidden1, model->d_inputs);
    for (size_t i = 0; i < BATCH * CONTEXT; i++)
        add_scaled(model->gradients + model->contexts[i] * EMBEDDING, 1,
                   model->d_inputs + i * EMBEDDING, EMBEDDING);
}

/* ---- Adam (Kingma and Ba 2015) ---- */

enum { MASTER, EXP_AVG, EXP_AVG_SQ, STATES }; /* what is kept per parameter */

static const char *const state_names[STATES] = {"master", "exp_avg", "exp_avg_sq"};

/* Updates `count` parameters in place; `step` counts from 1, `rate` is the learning rate. */
static inline void adam_update(float *const states[STATES], const float *restrict gradients,
                               size_t count, int step, float rate)
{
    const float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;
    const float correction1 = 1 - powf(beta1, (float)step);
    const float correction2 = 1 - powf(beta2, (float)step);
    float *restrict master = states[MASTER];
    float *restrict average = states[EXP_AVG], *restrict square = states[EXP_AVG_SQ];

    for (size_t i = 0; i < count; i++) {
        const float gradient = gradients[i];
        average[i] = beta1 * average[i] + (1 - beta1) * gradient;
        square[i] = beta2 * square[i] + (1 - beta2) * gradient * gradient;
        master[i] -= rate * (average[i] / correction1)
            / (sqrtf(square[i] / correction2) + epsilon);
    }
}

#endif
