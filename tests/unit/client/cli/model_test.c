/* Models from JSON: kinds that are alike are one, unknown fields are refused. */
#include "testlib/check.h"

#include "client/cli/model.h"

#define BASE                                                                                       \
    "\"num_q_heads\":4,\"num_kv_heads\":1,\"head_dim_qk\":256,\"head_dim_v\":256,"                 \
    "\"kv_dtype\":\"BF16\",\"scale\":0.0625"

static void test_model_joins_kinds_that_are_alike(void)
{
    struct relay_model *model = NULL;
    enum relay_dtype io_dtype = RELAY_DTYPE_UNSPECIFIED;
    struct relay_error err;
    CHECK_OK(
        relay_cli_model_parse("{\"num_layers\":3,\"dtype\":\"F16\"," BASE
                              ",\"layers\":[{\"window\":512},{\"window\":0},{\"window\":512}]}",
                              "key", &model, &io_dtype, &err),
        err);
    CHECK_STR(model->key, "key");
    CHECK_EQ(model->num_layers, 3);
    CHECK_EQ(model->num_kinds, 2);
    CHECK_EQ(relay_model_kind(model, 0)->window, 512);
    CHECK_EQ(relay_model_kind(model, 1)->window, 0);
    CHECK(relay_model_kind(model, 0) == relay_model_kind(model, 2));
    CHECK(relay_model_kind(model, 0)->scale == 0.0625f);
    CHECK_EQ(model->kv_dtype, RELAY_DTYPE_BF16);
    CHECK_EQ(io_dtype, RELAY_DTYPE_F16);
    relay_model_destroy(model);
}

static void test_model_without_layers_is_uniform(void)
{
    struct relay_model *model = NULL;
    enum relay_dtype io_dtype;
    struct relay_error err;
    CHECK_OK(relay_cli_model_parse("{\"num_layers\":2,\"softcap\":50," BASE "}", "key", &model,
                                   &io_dtype, &err),
             err);
    CHECK_EQ(model->num_kinds, 1);
    CHECK(relay_model_kind(model, 1)->softcap == 50.0f);
    CHECK_EQ(io_dtype, RELAY_DTYPE_F32);
    relay_model_destroy(model);
}

static void test_model_refuses_the_rest(void)
{
    static const char *const bad[] = {
        NULL,
        "",
        "[]",
        "{}",
        "{\"num_layers\":0," BASE "}",
        "{\"num_layers\":1000000," BASE "}",
        "{\"num_layers\":-1," BASE "}",
        "{\"num_layers\":1.5," BASE "}",
        "{\"num_layers\":\"2\"," BASE "}",
        "{\"num_layers\":2," BASE ",\"rope\":1}",
        "{\"num_layers\":2," BASE ",\"layers\":[{}]}",
        "{\"num_layers\":1," BASE ",\"layers\":[7]}",
        "{\"num_layers\":1," BASE ",\"layers\":[{\"kv_dtype\":\"F32\"}]}",
        "{\"num_layers\":1," BASE ",\"dtype\":\"F64\"}",
        "{\"num_layers\":1," BASE ",\"num_kv_heads\":3}",
        "{\"num_layers\":1," BASE ",\"scale\":\"1\"}",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct relay_model *model = NULL;
        enum relay_dtype io_dtype;
        struct relay_error err = {.code = RELAY_OK};
        if (relay_cli_model_parse(bad[i], "key", &model, &io_dtype, &err) !=
                RELAY_INVALID_ARGUMENT ||
            model != NULL || err.msg[0] == '\0') {
            CHECK_FAIL("taken: %s", bad[i] != NULL ? bad[i] : "(null)");
        }
    }
}

int main(void)
{
    CHECK_RUN(test_model_joins_kinds_that_are_alike);
    CHECK_RUN(test_model_without_layers_is_uniform);
    CHECK_RUN(test_model_refuses_the_rest);
    return check_done();
}
