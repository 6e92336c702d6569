/* Build-time tool: splits a FileDescriptorSet into C tables for server reflection.
 *
 *     relay_proto_gen descriptors.bin reflection_table.inc
 *
 * Reads only what it needs of descriptor.proto: names, and which messages, enums, services, methods
 * and fields a file declares. Its input is protoc-c's output, so a malformed one is a build error
 * and nothing more. One thread. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES 512
#define DEPTH_MAX  8

/* Field numbers of google/protobuf/descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_DEPENDENCY = 3,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    SERVICE_METHOD = 2,
    ANY_NAME = 1, /* of messages, fields, enums, services and methods alike */
};

struct bytes {
    const uint8_t *data;
    size_t length;
};

struct field {
    uint32_t number;
    struct bytes value; /* empty unless length-delimited */
};

static bool read_varint(struct bytes *in, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 64 && in->length > 0; shift += 7) {
        uint8_t byte = *in->data++;
        in->length--;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return true;
        }
    }
    return false;
}

/* 1 = a field, 0 = the end, -1 = malformed. */
static int next_field(struct bytes *in, struct field *field)
{
    uint64_t tag, length = 0;
    if (in->length == 0) {
        return 0;
    }
    if (!read_varint(in, &tag)) {
        return -1;
    }
    field->number = (uint32_t)(tag >> 3);
    field->value = (struct bytes){NULL, 0};
    switch (tag & 7) {
    case 0:
        return read_varint(in, &length) ? 1 : -1;
    case 1:
        length = 8;
        break;
    case 2:
        if (!read_varint(in, &length)) {
            return -1;
        }
        break;
    case 5:
        length = 4;
        break;
    default:
        return -1;
    }
    if (length > in->length) {
        return -1;
    }
    field->value = (struct bytes){in->data, (size_t)length};
    in->data += length;
    in->length -= (size_t)length;
    return 1;
}

/* Writes scope.name, with the name found in field 1 of a descriptor. */
static int full_name(char *name, const char *scope, struct bytes descriptor)
{
    struct field field;
    int got;
    while ((got = next_field(&descriptor, &field)) == 1) {
        if (field.number == ANY_NAME) {
            int n = snprintf(name, NAME_BYTES, "%s%s%.*s", scope, scope[0] != '\0' ? "." : "",
                             (int)field.value.length, (const char *)field.value.data);
            return n > 0 && n < NAME_BYTES ? 0 : -1;
        }
    }
    return -1;
}

static int write_symbol(FILE *out, const char *scope, struct bytes descriptor)
{
    char name[NAME_BYTES];
    if (full_name(name, scope, descriptor) != 0) {
        return -1;
    }
    return fprintf(out, "    \"%s\",\n", name) > 0 ? 0 : -1;
}

static int write_message(FILE *out, const char *scope, struct bytes descriptor, int depth)
{
    char name[NAME_BYTES];
    struct field field;
    int got;
    if (depth > DEPTH_MAX || full_name(name, scope, descriptor) != 0 ||
        write_symbol(out, scope, descriptor) != 0) {
        return -1;
    }
    while ((got = next_field(&descriptor, &field)) == 1) {
        int rc = 0;
        if (field.number == MESSAGE_NESTED) {
            rc = write_message(out, name, field.value, depth + 1);
        } else if (field.number == MESSAGE_FIELD || field.number == MESSAGE_ENUM) {
            rc = write_symbol(out, name, field.value);
        }
        if (rc != 0) {
            return -1;
        }
    }
    return got;
}

static int write_service(FILE *out, const char *scope, struct bytes descriptor)
{
    char name[NAME_BYTES];
    struct field field;
    int got;
    if (full_name(name, scope, descriptor) != 0 || write_symbol(out, scope, descriptor) != 0) {
        return -1;
    }
    while ((got = next_field(&descriptor, &field)) == 1) {
        if (field.number == SERVICE_METHOD && write_symbol(out, name, field.value) != 0) {
            return -1;
        }
    }
    return got;
}

struct file {
    char name[NAME_BYTES];
    char package[NAME_BYTES];
    bool imports;
};

static int read_file(struct bytes in, struct file *file)
{
    struct field field;
    int got;
    memset(file, 0, sizeof(*file));
    while ((got = next_field(&in, &field)) == 1) {
        char *to = field.number == FILE_NAME      ? file->name
                   : field.number == FILE_PACKAGE ? file->package
                                                  : NULL;
        if (to != NULL && field.value.length < NAME_BYTES) {
            memcpy(to, field.value.data, field.value.length);
        }
        file->imports |= field.number == FILE_DEPENDENCY;
    }
    return got == 0 && file->name[0] != '\0' ? 0 : -1;
}

static int write_file(FILE *out, struct bytes bytes, size_t index, const char *package)
{
    struct field field;
    struct bytes in = bytes;
    int got, rc = 0;

    fprintf(out, "static const uint8_t bytes_%zu[] = {", index);
    for (size_t i = 0; i < bytes.length; i++) {
        fprintf(out, "%s0x%02x,", i % 16 == 0 ? "\n    " : " ", bytes.data[i]);
    }
    fprintf(out, "\n};\n\nstatic const char *const symbols_%zu[] = {\n", index);
    while (rc == 0 && (got = next_field(&in, &field)) == 1) {
        if (field.number == FILE_MESSAGE) {
            rc = write_message(out, package, field.value, 0);
        } else if (field.number == FILE_ENUM) {
            rc = write_symbol(out, package, field.value);
        } else if (field.number == FILE_SERVICE) {
            rc = write_service(out, package, field.value);
        }
    }
    fprintf(out, "    NULL,\n};\n\nstatic const char *const services_%zu[] = {\n", index);
    in = bytes;
    while (rc == 0 && (got = next_field(&in, &field)) == 1) {
        if (field.number == FILE_SERVICE) {
            rc = write_symbol(out, package, field.value);
        }
    }
    fprintf(out, "    NULL,\n};\n\n");
    return rc;
}

static int write_all(FILE *out, struct bytes set)
{
    struct field field;
    struct file file;
    struct bytes in = set;
    size_t count = 0;
    int got;

    fprintf(out, "/* Generated from the descriptor set; included by reflection_data.c. */\n");
    while ((got = next_field(&in, &field)) == 1) {
        if (field.number != SET_FILE) {
            continue;
        }
        if (read_file(field.value, &file) != 0 ||
            write_file(out, field.value, count, file.package) != 0) {
            return -1;
        }
        if (file.imports) {
            fprintf(stderr, "%s imports a file; reflection_data.h says that none does\n",
                    file.name);
            return -1;
        }
        count++;
    }
    if (got != 0) {
        return -1;
    }
    fprintf(out, "static const struct relay_proto_file files[] = {\n");
    in = set;
    for (size_t i = 0; i < count && next_field(&in, &field) == 1; i++) {
        if (read_file(field.value, &file) != 0) {
            return -1;
        }
        fprintf(out,
                "    {\"%s\", bytes_%zu, sizeof(bytes_%zu), symbols_%zu,\n"
                "     sizeof(symbols_%zu) / sizeof(symbols_%zu[0]) - 1, services_%zu,\n"
                "     sizeof(services_%zu) / sizeof(services_%zu[0]) - 1},\n",
                file.name, i, i, i, i, i, i, i, i);
    }
    fprintf(out, "};\n");
    return 0;
}

static uint8_t *read_whole(const char *path, size_t *length)
{
    FILE *in = fopen(path, "rb");
    uint8_t *data = NULL;
    long size;
    if (in == NULL) {
        return NULL;
    }
    if (fseek(in, 0, SEEK_END) == 0 && (size = ftell(in)) > 0 && fseek(in, 0, SEEK_SET) == 0) {
        data = malloc((size_t)size);
        if (data != NULL && fread(data, 1, (size_t)size, in) != (size_t)size) {
            free(data);
            data = NULL;
        }
        *length = (size_t)size;
    }
    fclose(in);
    return data;
}

int main(int argc, char **argv)
{
    size_t length = 0;
    uint8_t *data;
    FILE *out;
    int rc;

    if (argc != 3) {
        fprintf(stderr, "usage: relay_proto_gen descriptors.bin reflection_table.inc\n");
        return 2;
    }
    data = read_whole(argv[1], &length);
    if (data == NULL) {
        fprintf(stderr, "cannot read %s\n", argv[1]);
        return 1;
    }
    out = fopen(argv[2], "w");
    if (out == NULL) {
        fprintf(stderr, "cannot write %s\n", argv[2]);
        free(data);
        return 1;
    }
    rc = write_all(out, (struct bytes){data, length});
    rc |= ferror(out);
    rc |= fclose(out);
    free(data);
    if (rc != 0) {
        fprintf(stderr, "%s is no descriptor set of this tree\n", argv[1]);
        remove(argv[2]);
        return 1;
    }
    return 0;
}
