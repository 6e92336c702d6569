/* The digest of a prompt while its bytes arrive: two running SHA-256 per layer. Owned by whoever
 * drives the upload; one thread at a time. */
#include "service/store/store_internal.h"

#include <openssl/evp.h>
#include <stdlib.h>

struct relayd_digest {
    uint32_t num_layers;
    EVP_MD_CTX **streams; /* [L][2]: K, V; NULL before a layer's first bytes */
};

enum relay_code relayd_digest_create(uint32_t num_layers, struct relayd_digest **out,
                                     struct relay_error *err)
{
    struct relayd_digest *digest = calloc(1, sizeof(*digest));
    if (digest != NULL) {
        digest->num_layers = num_layers;
        digest->streams = calloc((size_t)num_layers * 2, sizeof(EVP_MD_CTX *));
    }
    if (digest == NULL || digest->streams == NULL) {
        relayd_digest_destroy(digest);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a digest");
    }
    *out = digest;
    return RELAY_OK;
}

void relayd_digest_destroy(struct relayd_digest *digest)
{
    if (digest == NULL) {
        return;
    }
    for (size_t i = 0; digest->streams != NULL && i < (size_t)digest->num_layers * 2; i++) {
        EVP_MD_CTX_free(digest->streams[i]);
    }
    free(digest->streams);
    free(digest);
}

static EVP_MD_CTX *sha256_new(void)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (ctx != NULL && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(ctx);
        ctx = NULL;
    }
    return ctx;
}

static enum relay_code failed(struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_INTERNAL, "SHA-256 is not to be had");
}

static bool stream_update(EVP_MD_CTX **stream, const void *bytes, size_t n)
{
    if (*stream == NULL) {
        *stream = sha256_new();
    }
    return *stream != NULL && (n == 0 || EVP_DigestUpdate(*stream, bytes, n) == 1);
}

enum relay_code relayd_digest_update(struct relayd_digest *digest, uint32_t layer, const void *k,
                                     size_t k_bytes, const void *v, size_t v_bytes,
                                     struct relay_error *err)
{
    EVP_MD_CTX **streams = &digest->streams[(size_t)layer * 2];
    if (!stream_update(&streams[0], k, k_bytes) || !stream_update(&streams[1], v, v_bytes)) {
        return failed(err);
    }
    return RELAY_OK;
}

enum relay_code relayd_digest_final(struct relayd_digest *digest, const struct relayd_model *model,
                                    uint8_t out[RELAYD_DIGEST_BYTES], struct relay_error *err)
{
    EVP_MD_CTX *total = sha256_new();
    EVP_MD_CTX *layer = EVP_MD_CTX_new();
    bool ok = total != NULL && layer != NULL;
    for (uint32_t l = 0; ok && l < digest->num_layers; l++) {
        EVP_MD_CTX **streams = &digest->streams[(size_t)l * 2];
        uint8_t parts[2][RELAYD_DIGEST_BYTES];
        uint8_t whole[RELAYD_DIGEST_BYTES];
        if (!model->layers[l].own) {
            continue;
        }
        /* Empty updates make the streams of a layer that brought nothing. */
        ok = stream_update(&streams[0], NULL, 0) && stream_update(&streams[1], NULL, 0) &&
             EVP_DigestFinal_ex(streams[0], parts[0], NULL) == 1 &&
             EVP_DigestFinal_ex(streams[1], parts[1], NULL) == 1 &&
             EVP_DigestInit_ex(layer, EVP_sha256(), NULL) == 1 &&
             EVP_DigestUpdate(layer, parts, sizeof(parts)) == 1 &&
             EVP_DigestFinal_ex(layer, whole, NULL) == 1 &&
             EVP_DigestUpdate(total, whole, sizeof(whole)) == 1;
    }
    ok = ok && EVP_DigestFinal_ex(total, out, NULL) == 1;
    EVP_MD_CTX_free(total);
    EVP_MD_CTX_free(layer);
    return ok ? RELAY_OK : failed(err);
}
