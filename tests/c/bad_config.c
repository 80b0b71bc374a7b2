/* Keys and values that are wrong; texts that are no configuration; the list of keys. */
#include "test.h"

static const char *value_of(const tsw_config *config, const char *key)
{
    static char value[256];
    const size_t len = tsw_config_get(config, key, value, sizeof value);
    return len < sizeof value ? value : "(no value)";
}

static tsw_status load(tsw_config *config, const char *json)
{
    return tsw_config_load_json(config, json, strlen(json));
}

static void keys_and_values(tsw_config *config)
{
    char small[3] = "??", *large;

    EXPECT_ERROR(tsw_config_set(config, "queue_dept", "1"), TSW_ERR_CONFIG, "queue_depth");
    EXPECT_ERROR(tsw_config_set(config, "", ""), TSW_ERR_CONFIG, "unknown key");
    EXPECT_ERROR(tsw_config_set(config, "queue_depth", "0"), TSW_ERR_CONFIG, "1 to 4096");
    EXPECT_ERROR(tsw_config_set(config, "queue_depth", "99999999999999999999"), TSW_ERR_CONFIG,
                 "queue_depth");
    EXPECT_ERROR(tsw_config_set(config, "pin", "maybe"), TSW_ERR_CONFIG, "require|prefer|off");
    EXPECT_ERROR(tsw_config_set(config, "pin\xff", "off"), TSW_ERR_CONFIG, "UTF-8");
    EXPECT_ERROR(tsw_config_set(config, "path", "\xff"), TSW_ERR_CONFIG, "UTF-8");
    EXPECT(strchr(last_message(), '\n') == NULL);
    large = check_memory(calloc(1, 1 << 20));
    memset(large, 'x', (1 << 20) - 1);
    EXPECT_STATUS(tsw_config_set(config, large, "1"), TSW_ERR_CONFIG);
    EXPECT_STATUS(tsw_config_set(config, "queue_depth", large), TSW_ERR_CONFIG);
    free(large);

    EXPECT(tsw_config_get(config, "queue_dept", small, sizeof small) == SIZE_MAX);
    EXPECT(strcmp(small, "??") == 0);
    EXPECT_STATUS(tsw_config_set(config, "block_bytes", "2097152"), TSW_OK);
    EXPECT(strcmp(value_of(config, "block_bytes"), "2MiB") == 0);
    EXPECT(tsw_config_get(config, "block_bytes", small, sizeof small) == 4);
    EXPECT(strcmp(small, "2M") == 0); /* cut, and ended */
    EXPECT(tsw_config_get(config, "block_bytes", NULL, 0) == 4);
    EXPECT(strcmp(value_of(config, "queue_depth"), "32") == 0); /* nothing bad was taken */
}

static void texts(tsw_config *config)
{
    static const char *const bad[] = {
        "", "[]", "{", "null", "{\"queue_depth\": 0}", "{\"queue_dept\": 1}",
        "{\"pin\": \"off\", \"threads\": {}}", "{} {}", "{\"pin\": \"off\", \"pin\": \"off\"}",
        "{\"pin\": \"off\", \"path\": \"\xff\"}"};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        EXPECT_STATUS(load(config, bad[i]), TSW_ERR_CONFIG);
        EXPECT(last_message()[0] != '\0' && strchr(last_message(), '\n') == NULL);
        EXPECT(strcmp(value_of(config, "pin"), "prefer") == 0); /* all or nothing */
    }
    EXPECT_STATUS(tsw_config_load_json(config, NULL, 0), TSW_ERR_CONFIG);
    EXPECT_STATUS(tsw_config_load_json(config, "{\"pin\": \"off\"} garbage", 14), TSW_OK);
    EXPECT(strcmp(value_of(config, "pin"), "off") == 0);
    EXPECT_STATUS(load(config, "{\"aio\": {\"queue_depth\": 17, \"block_size\": 1048576,"
                               " \"single_submit\": false}}"),
                  TSW_OK);
    EXPECT(strcmp(value_of(config, "queue_depth"), "17") == 0);
}

static void keys(const tsw_config *config)
{
    int depth_seen = 0;
    for (size_t i = 0; i < tsw_config_keys(); i++) {
        const char *name = tsw_config_key_name(i);
        EXPECT(name != NULL && tsw_config_key_default(i) != NULL);
        EXPECT(strlen(tsw_config_key_help(i)) > 10);
        EXPECT(tsw_config_get(config, name, NULL, 0) != SIZE_MAX);
        depth_seen += strcmp(name, "queue_depth") == 0;
    }
    EXPECT(depth_seen == 1);
}

int main(void)
{
    tsw_config *config = check_memory(tsw_config_new());
    tsw_engine *engine = (tsw_engine *)config;

    keys_and_values(config);
    texts(config);
    keys(config);

    /* Options that the machine cannot give are the engine's error. */
    check(tsw_config_set(config, "backend", "threads"), "backend");
    check(tsw_config_set(config, "threads", "2"), "threads");
    EXPECT_STATUS(tsw_engine_new(config, &engine), TSW_OK);
    tsw_config_free(config); /* copied */
    {
        char *text = check_memory(malloc(65536));
        EXPECT(tsw_engine_describe(engine, text, 65536) == strlen(text));
        EXPECT(strstr(text, "\"backend\":\"threads\"") != NULL);
        free(text);
    }
    tsw_engine_free(engine);
    return result();
}
