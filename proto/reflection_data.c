/* Looks things up in the generated descriptor table. Constant data, any thread. */
#include <proto/reflection_data.h>
#include <string.h>

#include "reflection_table.inc"

const struct relay_proto_file *relay_proto_file(size_t i)
{
    return i < sizeof(files) / sizeof(files[0]) ? &files[i] : NULL;
}

const struct relay_proto_file *relay_proto_file_by_name(const char *name)
{
    const struct relay_proto_file *file;
    for (size_t i = 0; (file = relay_proto_file(i)) != NULL; i++) {
        if (strcmp(file->name, name) == 0) {
            return file;
        }
    }
    return NULL;
}

const struct relay_proto_file *relay_proto_file_by_symbol(const char *symbol)
{
    const struct relay_proto_file *file;
    for (size_t i = 0; (file = relay_proto_file(i)) != NULL; i++) {
        for (size_t s = 0; s < file->num_symbols; s++) {
            if (strcmp(file->symbols[s], symbol) == 0) {
                return file;
            }
        }
    }
    return NULL;
}

const char *relay_proto_service(size_t i)
{
    const struct relay_proto_file *file;
    for (size_t f = 0; (file = relay_proto_file(f)) != NULL; f++) {
        if (i < file->num_services) {
            return file->services[i];
        }
        i -= file->num_services;
    }
    return NULL;
}
