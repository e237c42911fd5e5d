//! What some C libraries have and others have not.

/// The address of a symbol of the C library, null where it has none by this name.
///
/// In a program that finds its C library when it starts, it is asked for by name then: a weak reference would still have
/// the program refused by a glibc that is older than the symbol. In a static one, the linker knows.
#[cfg(not(target_feature = "crt-static"))]
macro_rules! optional {
    ($name:literal) => {{
        let name: *const core::ffi::c_char = concat!($name, "\0").as_ptr().cast();
        // SAFETY: the name is a C string; the default scope is always valid.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, name) }
    }};
}

#[cfg(target_feature = "crt-static")]
macro_rules! optional {
    ($name:literal) => {{
        mod word {
            core::arch::global_asm!(
                concat!(".pushsection .data.rel.ro.pcpalloc_", $name, ",\"aw\",@progbits"),
                ".balign 8",
                concat!(".weak ", $name),
                concat!(".hidden __pcpalloc_0_1_at_", $name),
                concat!(".globl __pcpalloc_0_1_at_", $name),
                concat!("__pcpalloc_0_1_at_", $name, ":"),
                concat!(".quad ", $name),
                ".popsection",
            );
        }
        unsafe extern "C" {
            #[link_name = concat!("__pcpalloc_0_1_at_", $name)]
            static ADDRESS: usize;
        }
        // SAFETY: the word is defined above; the linker, or the program's start, has filled it in.
        (unsafe { ADDRESS }) as *mut core::ffi::c_void
    }};
}

pub(super) use optional;
