//! The global allocator, chosen by a feature of this package.

macro_rules! choose {
    ($($feature:literal => $allocator:ty = $value:expr;)*) => {
        $(
            #[cfg(feature = $feature)]
            #[global_allocator]
            static GLOBAL: $allocator = $value;

            /// What the allocator is called here.
            #[cfg(feature = $feature)]
            pub const NAME: &str = $feature;
        )*
        #[cfg(not(any($(feature = $feature),*)))]
        compile_error!(concat!("name an allocator by one of the features", $(" ", $feature),*));
    };
}

choose! {
    "pcpalloc" => pcpalloc::PcpAlloc = pcpalloc::PcpAlloc::new();
    "system" => std::alloc::System = std::alloc::System;
    "jemalloc" => tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
    "mimalloc2" => mimalloc::MiMalloc = mimalloc::MiMalloc;
    "mimalloc3" => mimalloc::MiMalloc = mimalloc::MiMalloc;
    "snmalloc" => snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;
    "rpmalloc" => rpmalloc::RpMalloc = rpmalloc::RpMalloc;
    "tcmalloc" => tcmalloc_better::TCMalloc = tcmalloc_better::TCMalloc;
}

/// In which of its modes the allocator runs here, for those that have several.
pub fn mode() -> Option<String> {
    #[cfg(feature = "pcpalloc")]
    return Some(format!("{:?}", GLOBAL.stats().mode));
    #[cfg(not(feature = "pcpalloc"))]
    None
}
