use candle_core::Device;

/// Launches that are always the same: on a GPU they are captured as a CUDA graph and replayed, which costs the host one
/// call in place of hundreds. Elsewhere, and where a capture is refused, they are launched each time.
///
/// What is launched may depend on nothing but memory that outlives this, and allocate nothing that does.
#[derive(Default)]
pub struct Replay {
    #[cfg(feature = "cuda")]
    state: with_cuda::State,
}

impl Replay {
    /// Does on `device` what `launches` does, which is not asked once there is a graph.
    pub fn run<E: From<candle_core::Error> + std::fmt::Display>(
        &mut self,
        device: &Device,
        launches: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => self.state.run(device, launches),
            _ => launches(),
        }
    }
}

#[cfg(feature = "cuda")]
mod with_cuda {
    use std::fmt::Display;

    use candle_core::{
        CudaDevice, Error,
        cuda::{
            WrapErr as _,
            cudarc::driver::{
                CudaGraph,
                sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
            },
        },
    };

    /// Plain launches before a capture: they load kernels, fill caches and upload what candle keeps of shapes.
    const WARM_UPS: usize = 2;

    pub(super) enum State {
        Warming(usize),
        Captured(CudaGraph),
        /// A capture was refused.
        Plain,
    }

    impl Default for State {
        fn default() -> Self {
            Self::Warming(0)
        }
    }

    impl State {
        pub(super) fn run<E: From<Error> + Display>(
            &mut self,
            device: &CudaDevice,
            launches: impl Fn() -> Result<(), E>,
        ) -> Result<(), E> {
            if let Self::Warming(WARM_UPS) = self {
                *self = match capture(device, &launches) {
                    Ok(graph) => Self::Captured(graph),
                    Err(reason) => {
                        eprintln!("no CUDA graph, each step is launched anew: {reason}");
                        Self::Plain
                    }
                };
            }
            match self {
                Self::Warming(count) => {
                    *count += 1;
                    let _uploads_are_kept = device.enable_cuda_graph_htod_cache();
                    launches()
                }
                Self::Captured(graph) => Ok(graph.launch().w()?),
                Self::Plain => launches(),
            }
        }
    }

    /// A graph of the launches, none of which runs. Errors: why there is none; the stream is as it was before.
    fn capture<E: From<Error> + Display>(
        device: &CudaDevice,
        launches: impl Fn() -> Result<(), E>,
    ) -> Result<CudaGraph, String> {
        let _uploads_are_kept = device.enable_cuda_graph_htod_cache();
        let stream = device.cuda_stream();
        if stream.context().is_managing_stream_synchronization() {
            // Events that were recorded in a capture could not be waited for outside it.
            return Err("another stream's use of memory is tracked".into());
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(|error| error.to_string())?;
        let launched = launches().map_err(|error| error.to_string());
        // What a capture that failed could not free is no later call's error.
        let freed = stream.context().check_err().map_err(|error| error.to_string());
        // Also after an error, or the stream would stay in its capture.
        let ended = stream.end_capture(CUgraphInstantiate_flags(0)).map_err(|error| error.to_string());
        let ended = ended.and_then(|graph| graph.ok_or_else(|| "nothing was captured".to_owned()));
        let graph = launched.and(freed).and(ended);
        if graph.is_err()
            && let Err(error) = stream.context().check_err()
        {
            eprintln!("after the capture: {error}");
        }
        graph
    }
}
