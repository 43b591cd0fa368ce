//! The checks by name. Each is an error if a result is too far from its twin's.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod decode;
pub mod decoders;
pub mod elementwise;
pub mod experts;
pub mod linear;
pub mod lora;
pub mod mxfp4;
pub mod nf4;
pub mod routing;
pub mod sampling;

/// Calls a macro with the path of every check.
#[macro_export]
macro_rules! for_each_check {
    ($do:ident) => {
        $do! {
            cases::adamw::updates_norms_and_moments_are_those_of_the_host,
            cases::adamw::gradients_that_do_not_fit_are_refused,
            cases::attention::packed_rows_of_odd_lengths,
            cases::attention::windows_and_sinks,
            cases::attention::head_dims,
            cases::attention::more_keys_than_queries,
            cases::attention::decoding,
            cases::attention::rows_of_no_segment_are_zero,
            cases::attention::a_part_of_a_buffer,
            cases::attention::what_the_kernels_do_not_do_is_an_error,
            cases::cross_entropy::a_frozen_projection_is_its_twin,
            cases::cross_entropy::a_projection_that_learns_is_its_twin,
            cases::cross_entropy::rows_that_learn_are_their_twins,
            cases::cross_entropy::a_target_beyond_the_vocabulary_is_refused,
            cases::decode::attention_reads_on_the_device_how_many_keys_there_are,
            cases::decode::tokens_are_drawn_and_counted_on_the_device,
            cases::decode::tokens_are_looked_up_on_the_device,
            cases::elementwise::rms_norm_is_its_twin,
            cases::elementwise::rms_norm_with_a_weight_that_learns_is_its_twin,
            cases::elementwise::rope_is_its_twin,
            cases::elementwise::swiglu_is_its_twin,
            cases::experts::clamped_values_are_their_twins,
            cases::experts::what_is_clamped_has_no_gradient,
            cases::experts::a_few_places_are_their_twin,
            cases::experts::many_places_are_their_twin,
            cases::experts::one_expert_may_have_all_tokens,
            cases::experts::updates_are_their_twin,
            cases::experts::updates_may_be_of_one_product_alone,
            cases::experts::what_does_not_fit_is_refused,
            cases::linear::a_frozen_weight_in_bf16_is_its_twin,
            cases::linear::a_weight_in_nf4_is_its_twin,
            cases::linear::a_weight_that_learns_is_its_twin,
            cases::linear::an_odd_number_of_outputs_is_its_twin,
            cases::linear::sizes_that_do_not_fit_are_refused,
            cases::lora::an_adapted_layer_is_its_twin,
            cases::lora::an_update_that_is_added_later_is_its_twin,
            cases::lora::dropout_has_its_twins_mask,
            cases::lora::norms_of_adapted_rows_are_their_twins,
            cases::mxfp4::every_code_has_its_value_at_every_scale,
            cases::nf4::a_weight_quantised_on_the_device_has_the_hosts_codes_and_scales,
            cases::nf4::values_are_the_hosts_rounded_to_bf16,
            cases::nf4::what_is_not_a_number_stays_so,
            cases::nf4::a_width_that_no_kernel_takes_is_refused,
            cases::routing::routing_is_its_twin,
            cases::routing::logits_in_f32_are_routed_alike,
            cases::routing::places_are_sorted_by_expert,
            cases::sampling::the_same_draws_take_the_same_tokens,
            cases::sampling::logits_that_are_no_numbers_are_not_drawn,
            steps::qwen3_in_nf4_trains_as_on_the_cpu,
            steps::gpt_oss_in_mxfp4_trains_as_on_the_cpu,
            steps::decoding_gives_the_logits_of_a_forward,
            cases::decoders::qwen3_sequences_side_by_side_are_those_alone,
            cases::decoders::gpt_oss_sequences_side_by_side_are_those_alone,
        }
    };
}
