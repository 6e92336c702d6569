"""Who may include and link what: the table of the architecture, once, for includes.py."""

# Path prefix -> (prefixes of the project it may include besides itself, third parties).
# The longest matching prefix counts.
ROOMS = {
    "kernels/include": ([], []),
    "kernels/core": (["kernels/include"], []),
    "kernels/plan": (["kernels/include", "kernels/core"], []),
    "kernels/ref": (["kernels/include", "kernels/core"], []),
    "kernels/cpu": (["kernels/include", "kernels/core"], []),
    "kernels/cuda": (["kernels/include", "kernels/core"], ["cuda"]),
    # The folder above wire holds the descriptors that reflection serves, and their generator.
    "proto": ([], []),
    "proto/wire": (["kernels/include", "generated"], ["grpc", "protobuf-c"]),
    "service/base": (["kernels/include/relay/status.h"], []),
    "service/config": (["service/base", "kernels/include/relay/status.h"], ["inih"]),
    "service/store": (["service/base", "kernels/include"], ["openssl", "xxhash", "uthash"]),
    "service/batch": (["service/store", "service/base", "kernels/include"], []),
    "service/session": (["service/batch", "service/store", "service/base", "kernels/include"],
                        ["openssl", "uthash"]),  # tables of sessions and handles
    "service/rpc": (["service/session", "service/store", "service/base", "kernels/include",
                     "service/batch/call.h",  # it fills calls and sends from them
                     "proto", "generated"], ["grpc", "protobuf-c"]),
    "service/ops": (["service/base", "kernels/include/relay/status.h"], ["uv"]),
    "service/main.c": (["service", "kernels/include"], []),
    "client/include": (["kernels/include"], []),
    "client/lib": (["client/include", "proto", "kernels/include", "generated"],
                   ["grpc", "protobuf-c", "xxhash"]),  # xxhash: chunks carry checksums
    "client/cli": (["client/include", "kernels/include"], ["cjson"]),
}

# Third party -> how its headers begin.
THIRD_PARTY = {
    "grpc": ("grpc/",),
    "protobuf-c": ("protobuf-c/", "google/protobuf-c/"),
    "openssl": ("openssl/",),
    "xxhash": ("xxhash.h",),
    "uthash": ("uthash.h", "utlist.h", "utarray.h"),
    "uv": ("uv.h", "uv/"),
    "inih": ("ini.h",),
    "cjson": ("cjson/", "cJSON.h"),
    "cuda": ("cuda", "cooperative_groups", "mma.h", "nvtx3/"),
}

# CMake target -> third party, or folder of the project.
LINKS = {
    "PkgConfig::GRPC": "grpc",
    "PkgConfig::PROTOBUF_C": "protobuf-c",
    "PkgConfig::UV": "uv",
    "PkgConfig::CRYPTO": "openssl",
    "PkgConfig::XXHASH": "xxhash",
    "PkgConfig::INIH": "inih",
    "PkgConfig::CJSON": "cjson",
    "CUDA::cudart": "cuda",
    "CUDA::cudart_static": "cuda",
    "CUDA::cuda_driver": "cuda",
    "relay_proto": "generated",
    "relay_wire": "proto",
    "relayd_base": "service/base",
    "relayd_config": "service/config",
    "relayd_store": "service/store",
    "relayd_batch": "service/batch",
    "relayd_session": "service/session",
    "relayd_rpc": "service/rpc",
    "relayd_ops": "service/ops",
    "relay_client": "client/include",
    "relay_client_shared": "client/include",
}

ISO_C = {
    "assert.h", "ctype.h", "errno.h", "fenv.h", "float.h", "inttypes.h", "limits.h", "locale.h",
    "math.h", "setjmp.h", "signal.h", "stdalign.h", "stdarg.h", "stdatomic.h", "stdbool.h",
    "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h", "time.h",
}
POSIX = {
    "dirent.h", "dlfcn.h", "fcntl.h", "getopt.h", "malloc.h", "netdb.h", "poll.h", "pthread.h", "sched.h",
    "semaphore.h", "strings.h", "termios.h", "unistd.h", "immintrin.h", "cpuid.h", "arm_neon.h",
}
POSIX_FOLDERS = ("sys/", "netinet/", "arpa/", "net/", "linux/", "asm/")


def room_of(path):
    """The room a file of the project is in, or None."""
    best = None
    for room in ROOMS:
        if path == room or path.startswith(room + "/"):
            if best is None or len(room) > len(best):
                best = room
    return best
