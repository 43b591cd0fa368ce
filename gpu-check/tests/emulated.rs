//! Every check, on the emulated GPU.

use lathe_gpu_check::{cases, for_each_check, steps};

macro_rules! tests {
    ($($module:ident $(:: $part:ident)*),* $(,)?) => {
        $(tests!(@one [$module $($part)*] $module $(:: $part)*);)*
    };
    (@one [cases $group:ident $name:ident] $path:path) => {
        mod $name {
            #[test]
            fn $group() {
                lathe_emulator::install();
                super::cases::$group::$name().unwrap();
            }
        }
    };
    (@one [steps $name:ident] $path:path) => {
        mod $name {
            #[test]
            fn steps() {
                lathe_emulator::install();
                super::steps::$name().unwrap();
            }
        }
    };
}

for_each_check!(tests);
