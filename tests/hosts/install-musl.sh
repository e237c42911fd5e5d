#!/usr/bin/env bash
# What it takes to build for musl where rustup has no such target: Debian's compiler, its sources of the standard library,
# and musl. Installs the packages rustc-web, cargo-web, rust-web-src and musl-tools (300 MB), and puts a library in
# target/musl-lib. rustup's own tools stay the ones that are found first.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages="rustc-web cargo-web rust-web-src musl-tools"
if ! dpkg -s $packages >/dev/null 2>&1; then
    echo "installing: $packages"
    apt-get update -q
    apt-get install -y -q --no-install-recommends $packages
fi

# The standard library asks for a libunwind. gcc's libgcc_eh is one, but Debian's was built for a glibc that looks an
# address's object up for it (`_dl_find_object`, 2.35); here is that function for C libraries that only list objects.
mkdir -p target/musl-lib
cat > target/musl-lib/dl_find_object.c <<'C'
#define _GNU_SOURCE
#include <link.h>
#include <pthread.h>
#include <stddef.h>

/* libgcc_eh refers to these weakly, which takes nothing out of an archive, and calls them: with glibc they are always
   there. */
void *const dl_find_object_needs[] = {
    (void *)pthread_once,         (void *)pthread_key_create,  (void *)pthread_getspecific,
    (void *)pthread_setspecific,  (void *)pthread_mutex_lock,  (void *)pthread_mutex_unlock,
};

/* As in glibc's <dlfcn.h>, x86-64. */
struct dl_find_object {
    unsigned long long flags;
    void *map_start, *map_end;
    struct link_map *link_map;
    void *eh_frame;
    unsigned long long reserved[7];
};

struct search {
    ElfW(Addr) address;
    struct dl_find_object *found;
};

static int look(struct dl_phdr_info *info, size_t size, void *data) {
    struct search *search = data;
    const ElfW(Phdr) *holds = NULL, *frames = NULL;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        ElfW(Addr) start = info->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_LOAD && search->address - start < header->p_memsz) holds = header;
        if (header->p_type == PT_GNU_EH_FRAME) frames = header;
    }
    if (!holds || !frames) return 0;
    search->found->map_start = (void *)(info->dlpi_addr + holds->p_vaddr);
    search->found->map_end = (char *)search->found->map_start + holds->p_memsz;
    search->found->eh_frame = (void *)(info->dlpi_addr + frames->p_vaddr);
    return 1;
}

int _dl_find_object(void *address, struct dl_find_object *found) {
    struct search search = {(ElfW(Addr))address, found};
    *found = (struct dl_find_object){0};
    return dl_iterate_phdr(look, &search) ? 0 : -1;
}
C
musl-gcc -O2 -fPIC -c target/musl-lib/dl_find_object.c -o target/musl-lib/dl_find_object.o
ar rcs target/musl-lib/libdl_find_object.a target/musl-lib/dl_find_object.o
echo 'INPUT(-lgcc_eh -ldl_find_object)' > target/musl-lib/libunwind.a
