/* States written as safetensors and masters read from them: what is in the file, whole and in
 * shards, and what the two calls refuse. */
#include "optimizer.h"

enum { FIRST = 1000, SECOND = 3 };

/* The values of a tensor that is named `name` in a file with one header; NULL where it is not there.
 * The caller frees them. */
static float *tensor_of(const char *path, const char *name, uint64_t numel)
{
    FILE *file = fopen(path, "rb");
    unsigned char prefix[8];
    unsigned long long start, end, len = 0;
    char key[128], *header, *place;
    float *values = NULL;

    if (file == NULL || fread(prefix, 1, 8, file) != 8)
        fail(path, strerror(errno));
    for (int i = 7; i >= 0; i--)
        len = len << 8 | prefix[i];
    header = check_memory(calloc(len + 1, 1));
    if (fread(header, 1, len, file) != len)
        fail(path, "shorter than its header");
    snprintf(key, sizeof key, "\"%s\":{\"dtype\":\"F32\",\"shape\":[%llu],\"data_offsets\":", name,
             (unsigned long long)numel);
    place = strstr(header, key);
    if (place != NULL && sscanf(place + strlen(key), "[%llu,%llu]", &start, &end) == 2) {
        values = new_floats(numel);
        EXPECT(end - start == numel * sizeof *values);
        if (fseek(file, (long)(8 + len + start), SEEK_SET) != 0
            || fread(values, sizeof *values, numel, file) != numel)
            fail(path, "shorter than its tensors");
    }
    free(header);
    fclose(file);
    return values;
}

static int tensor_is(const char *path, const char *name, const float *expected, uint64_t numel)
{
    float *values = tensor_of(path, name, numel);
    const int equal = values != NULL && memcmp(values, expected, numel * sizeof *values) == 0;
    free(values);
    return equal;
}

static void round_trip(tsw_optimizer *optimizer)
{
    const uint64_t ids[2] = {1, 2};
    const char *const names[2] = {"layer", NULL}, *const swapped[2] = {"none", "layer"};
    float *first = new_values(1, FIRST), *second = new_values(2, SECOND), *zeros = new_floats(FIRST);
    const tsw_tensor sources[2] = {floats(first, FIRST), floats(second, SECOND)};

    check(tsw_optimizer_initialize_parameters(optimizer, ids, sources, 2), "initialize");
    EXPECT_STATUS(tsw_optimizer_write_state(optimizer, 1, "exp_avg", &sources[0]), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_export_safetensors(optimizer, "a.safetensors", 0), TSW_OK);
    EXPECT(tensor_is("a.safetensors", "layer", first, FIRST));
    EXPECT(tensor_is("a.safetensors", "layer.exp_avg", first, FIRST));
    EXPECT(tensor_is("a.safetensors", "layer.exp_avg_sq", zeros, FIRST));
    EXPECT(tensor_is("a.safetensors", "parameter.2", second, SECOND));
    EXPECT(file_len("a.safetensors.partial") == -1);

    EXPECT_STATUS(tsw_optimizer_export_safetensors(optimizer, "b.safetensors", FIRST * 4), TSW_OK);
    EXPECT(tensor_is("b-00002-of-00004.safetensors", "layer.exp_avg", first, FIRST));
    EXPECT(tensor_is("b-00004-of-00004.safetensors", "parameter.2", second, SECOND));
    EXPECT(file_len("b.safetensors") == -1 && file_len("b.safetensors.index.json") > 0);

    for (int from_index = 0; from_index < 2; from_index++) {
        const char *file = from_index ? "b.safetensors.index.json" : "a.safetensors";
        check(tsw_optimizer_initialize_parameters(
                  optimizer, ids, (tsw_tensor[]){floats(zeros, FIRST), floats(zeros, SECOND)}, 2),
              "initialize");
        EXPECT_STATUS(tsw_optimizer_initialize_from_safetensors(optimizer, file, ids,
                                                                from_index ? names : NULL, 2),
                      TSW_OK);
        EXPECT(state_is(optimizer, 1, MASTER, first, FIRST));
        EXPECT(state_is(optimizer, 1, EXP_AVG, zeros, FIRST));
        EXPECT(state_is(optimizer, 2, MASTER, second, SECOND));
    }
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, "a.safetensors", ids, swapped,
                                                           2),
                 TSW_ERR_NOT_FOUND, "it has no tensor none");
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, "a.safetensors", ids + 1,
                                                           names, 1),
                 TSW_ERR_SIZE_MISMATCH, "tensor layer has 1000 elements, and parameter 2 has 3");
    EXPECT(state_is(optimizer, 2, MASTER, second, SECOND));
    free(first);
    free(second);
    free(zeros);
}

static void refusals(tsw_optimizer *optimizer)
{
    static const char no_utf8[] = {(char)0xff, 0};
    const char *const bad_names[2] = {NULL, no_utf8};
    const uint64_t ids[2] = {1, 2}, twice[2] = {1, 1}, unknown = 7;
    FILE *file = fopen("text", "w");

    fputs("this is no model, and neither is the rest of it", check_memory(file));
    fclose(file);
    EXPECT_ERROR(tsw_optimizer_export_safetensors(NULL, "a", 0), TSW_ERR_NULL_ARGUMENT,
                 "optimizer is NULL");
    EXPECT_ERROR(tsw_optimizer_export_safetensors(optimizer, NULL, 0), TSW_ERR_NULL_ARGUMENT,
                 "file is NULL");
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(NULL, "text", ids, NULL, 1),
                 TSW_ERR_NULL_ARGUMENT, "optimizer is NULL");
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, NULL, ids, NULL, 1),
                 TSW_ERR_NULL_ARGUMENT, "file is NULL");
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, "text", NULL, NULL, 1),
                 TSW_ERR_NULL_ARGUMENT, "ids is NULL");
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, "text", ids, bad_names, 2),
                 TSW_ERR_INVALID_ARGUMENT, "names[1]: name is not UTF-8");
    EXPECT_STATUS(tsw_optimizer_initialize_from_safetensors(optimizer, "text", ids, NULL, SIZE_MAX),
                  TSW_ERR_NO_MEMORY);
    EXPECT_STATUS(tsw_optimizer_initialize_from_safetensors(optimizer, "missing", NULL, NULL, 0),
                  TSW_OK);
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, "text", ids, NULL, 1),
                 TSW_ERR_CORRUPT, "it is no safetensors file");
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, "missing", ids, NULL, 1),
                 TSW_ERR_NOT_FOUND, "missing");
    EXPECT_ERROR(tsw_optimizer_initialize_from_safetensors(optimizer, "text", twice, NULL, 2),
                 TSW_ERR_INVALID_ARGUMENT, "parameter 1 is given twice");
    EXPECT_STATUS(tsw_optimizer_initialize_from_safetensors(optimizer, "text", &unknown, NULL, 1),
                  TSW_ERR_UNKNOWN_PARAMETER);
    EXPECT_ERROR(tsw_optimizer_export_safetensors(optimizer, "missing/a.safetensors", 0),
                 TSW_ERR_NOT_FOUND, "missing");
    EXPECT_STATUS(tsw_optimizer_export_safetensors(optimizer, "", 0), TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_export_safetensors(optimizer, "store", 0), TSW_ERR_INVALID_ARGUMENT);
    EXPECT(file_len("store.partial") == -1);

    check(tsw_optimizer_step_begin(optimizer, NULL, 0), "step begin");
    EXPECT_STATUS(tsw_optimizer_export_safetensors(optimizer, "busy", 0), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_initialize_from_safetensors(optimizer, "a.safetensors", ids, NULL,
                                                            2),
                  TSW_ERR_BUSY);
    check(tsw_optimizer_step_abort(optimizer), "step abort");
    EXPECT(file_len("busy") == -1 && file_len("busy.partial") == -1);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    tsw_optimizer *optimizer;

    check(open_store(engine, &optimizer, NULL), "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    check(tsw_optimizer_add_parameter(optimizer, 1, "layer", FIRST), "add parameter");
    check(tsw_optimizer_add_parameter(optimizer, 2, NULL, SECOND), "add parameter");
    round_trip(optimizer);
    refusals(optimizer);
    EXPECT_USABLE(optimizer);
    tsw_optimizer_free(optimizer);
    tsw_engine_free(engine);
    return result();
}
