#!/usr/bin/env python3
"""Checks every #include of the rooms, and what their CMake targets link, against rooms.py.

Usage: includes.py [ROOT]. Exit code 0 clean, 1 problems.
"""

import os
import re
import sys

import rooms
import source

INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*([<\"])([^>\"\n]+)[>\"]", re.MULTILINE)
LINK = re.compile(r"target_link_libraries\s*\(([^)]*)\)", re.DOTALL)


def resolve(root, path, name):
    """The project file an include means, "generated", or None: it is not ours."""
    if name.endswith(".pb-c.h") or name == "reflection_table.inc":
        return "generated"
    folder = os.path.dirname(path)
    tops = [folder, rooms.room_of(path) or "", "", "kernels", "kernels/include", "client/include", "client/lib"]
    for top in tops:
        candidate = os.path.normpath(os.path.join(top, name))
        if not candidate.startswith("..") and os.path.isfile(os.path.join(root, candidate)):
            return candidate
    return None


def third_party(name):
    for party, beginnings in rooms.THIRD_PARTY.items():
        if name.startswith(beginnings):
            return party
    return None


def allowed(target, room, may):
    # The generated table is included where it is made into data.
    if target == "generated" and room == "proto":
        return True
    if rooms.room_of(target) == room:
        return True
    return any(target == m or target.startswith(m + "/") for m in may)


def check_include(root, path, name):
    room = rooms.room_of(path)
    if room is None:
        return "is in no room of rooms.py"
    may, parties = rooms.ROOMS[room]
    target = resolve(root, path, name)
    if target is not None:
        return None if allowed(target, room, may) else "%s may not include %s" % (room, target)
    party = third_party(name)
    if party is not None:
        return None if party in parties else "%s may not use %s" % (room, party)
    if name in rooms.ISO_C:
        return None
    if room.endswith("/include"):
        return "public headers include ISO C headers only"
    if name in rooms.POSIX or name.startswith(rooms.POSIX_FOLDERS):
        return None
    return "unknown header: no file of ours, no third party or system header of rooms.py"


def linked_rooms(root, path):
    """The rooms a CMakeLists.txt builds or joins: its own folder's, and those below that have none of
    their own; all those below where the folder is no room itself."""
    folder = os.path.dirname(path)
    below = [room for room in rooms.ROOMS if room.startswith(folder + "/")]
    if folder not in rooms.ROOMS:
        return below
    return [folder] + [room for room in below
                       if not os.path.exists(os.path.join(root, room, "CMakeLists.txt"))]


def check_links(root, path):
    """Targets that a CMakeLists.txt links and none of its rooms may include."""
    problems = []
    built = linked_rooms(root, path)
    text = re.sub(r"#[^\n]*", "", source.read(root, path))
    for link in LINK.finditer(text):
        for name in link.group(1).split()[1:]:
            target = rooms.LINKS.get(name)
            if target is None or any(target in rooms.ROOMS[room][1] or
                                     allowed(target, room, rooms.ROOMS[room][0])
                                     for room in built):
                continue
            problems.append("%s:%d: %s may not link %s" % (
                path, source.line_of(text, link.start()), os.path.dirname(path), name))
    return problems


def main():
    root = source.root_from_args()
    problems = []
    paths = source.files(root)
    for path in paths:
        text = source.read(root, path)
        for match in INCLUDE.finditer(text):
            problem = check_include(root, path, match.group(2))
            if problem:
                problems.append("%s:%d: %s: %s" % (path, source.line_of(text, match.start()),
                                                   match.group(2), problem))
    lists = source.files(root, endings=("CMakeLists.txt",))
    for path in lists:
        problems += check_links(root, path)
    return source.finish("includes", problems, len(paths) + len(lists))


if __name__ == "__main__":
    sys.exit(main())
