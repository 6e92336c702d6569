/* The AMX kernel without AMX, for amx_test.c. One thread. */
#ifndef AMX_EMULATED_H
#define AMX_EMULATED_H

#include "cpu/isa.h"

extern const struct relay_cpu_isa amx_emulated;

#endif
