//! Structures have the same sizes and offsets on both sides of the border, and the frozen ones are
//! where they were frozen.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fmt::Write as _;
use std::mem::offset_of;
use std::process::Command;

use tensorswap::capi::{
    tsw_completion, tsw_engine_stats, tsw_optimizer_stats, tsw_parameter_view, tsw_partition,
    tsw_state_view, tsw_swapper_stats, tsw_tensor, tsw_timer,
};

/// A structure as Rust sees it: name, size, and each field with its offset.
struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize)>,
}

macro_rules! layout {
    ($name:ident: $($field:ident)*) => {
        Layout {
            name: stringify!($name),
            size: size_of::<$name>(),
            fields: vec![$((stringify!($field), offset_of!($name, $field))),*],
        }
    };
}

fn layouts() -> Vec<Layout> {
    vec![
        layout!(tsw_tensor: data numel dtype flags file_offset user_tag reserved),
        layout!(tsw_completion: struct_size status os_error reserved failed_index ticket bytes_done
            elapsed_ns user_tag message),
        layout!(tsw_timer: struct_size reserved count total_ns min_ns max_ns p50_ns p99_ns),
        layout!(tsw_engine_stats: struct_size reserved
            swap_out_operations_count swap_out_bytes swap_out_in_flight_count
            swap_out_in_flight_peak_count swap_out_retries_count swap_out_short_transfers_count
            swap_out_fallbacks_count swap_out_errors_count
            swap_in_operations_count swap_in_bytes swap_in_in_flight_count
            swap_in_in_flight_peak_count swap_in_retries_count swap_in_short_transfers_count
            swap_in_fallbacks_count swap_in_errors_count
            requests_count requests_in_flight_count in_flight_count in_flight_peak_count
            bounced_bytes open_files_count pinned_bytes),
        layout!(tsw_swapper_stats: struct_size reserved
            swap_out_tensors_count swap_out_elements_count swap_out_bytes
            swap_in_tensors_count swap_in_elements_count swap_in_bytes
            in_flight_bytes in_flight_peak_bytes waited_ns copies_avoided_count
            copies_avoided_bytes buffers_count buffers_free_count buffers_in_flight_count
            errors_count),
        layout!(tsw_optimizer_stats: struct_size reserved
            parameters_count steps_count commits_count durable_step step_read_bytes
            step_written_bytes read_bytes written_bytes cache_hits_count cache_misses_count
            wait_read_ns wait_write_ns update_ns step_ns io_floor_ns compute_floor_ns
            pinned_computed_bytes pinned_used_bytes pinned_peak_bytes gradient_memory_bytes
            gradient_spilled_bytes checksum_errors_count store_bytes store_written_bytes),
        layout!(tsw_state_view: data numel dtype reserved),
        layout!(tsw_parameter_view: struct_size states_len id numel gradient states),
        layout!(tsw_partition: param_id offset tensor path reserved),
    ]
}

fn seen_by_rust() -> String {
    let mut text = String::new();
    for Layout { name, size, fields } in layouts() {
        writeln!(text, "{name} {size}").unwrap();
        for (field, offset) in fields {
            writeln!(text, "{name}.{field} {offset}").unwrap();
        }
    }
    text
}

/// A program that prints the same text.
fn program() -> String {
    let mut lines = String::new();
    for Layout { name, fields, .. } in layouts() {
        writeln!(lines, "    printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        for (field, _) in fields {
            let offset = format!("offsetof({name}, {field})");
            writeln!(lines, "    printf(\"{name}.{field} %zu\\n\", {offset});").unwrap();
        }
    }
    format!(
        "#include <stdio.h>\n#include \"tensorswap.h\"\nint main(void)\n{{\n{lines}    return 0;\n}}\n"
    )
}

#[test]
fn c_and_cpp_see_what_rust_sees() {
    let directory = common::directory();
    for (is_cpp, extension) in [(false, "c"), (true, "cc")] {
        let source = directory.path().join(format!("layout.{extension}"));
        let binary = directory.path().join("layout");
        std::fs::write(&source, program()).unwrap();
        let mut compiler = common::compiler(is_cpp);
        compiler.arg("-I").arg(common::root().join("include"));
        common::run(compiler.arg(&source).arg("-o").arg(&binary));
        assert_eq!(common::run(&mut Command::new(&binary)), seen_by_rust());
    }
}

#[test]
fn no_field_is_left_out_here() {
    let header = common::root().join("include/tensorswap.h");
    let header = std::fs::read_to_string(header).unwrap();
    for Layout { name, fields, .. } in layouts() {
        let start = format!("typedef struct {name} {{");
        let (_, body) = header.split_once(&start).unwrap();
        let (body, _) = body.split_once('}').unwrap();
        let declared = body.lines().filter(|line| line.ends_with(';')).count();
        assert_eq!(declared, fields.len(), "{name}");
    }
}

#[test]
fn the_frozen_ones_are_where_they_were_frozen() {
    assert_eq!(size_of::<tsw_tensor>(), 64);
    let offsets = [
        offset_of!(tsw_tensor, data),
        offset_of!(tsw_tensor, numel),
        offset_of!(tsw_tensor, dtype),
        offset_of!(tsw_tensor, flags),
        offset_of!(tsw_tensor, file_offset),
        offset_of!(tsw_tensor, user_tag),
        offset_of!(tsw_tensor, reserved),
    ];
    assert_eq!(offsets, [0, 8, 16, 20, 24, 32, 40]);
    assert_eq!(size_of::<tsw_completion>(), 248);
    assert_eq!(offset_of!(tsw_completion, message), 56);
    assert_eq!(size_of::<tsw_state_view>(), 24);
    assert_eq!(size_of::<tsw_parameter_view>(), 240);
    assert_eq!(offset_of!(tsw_parameter_view, gradient), 24);
    assert_eq!(offset_of!(tsw_parameter_view, states), 48);
    assert_eq!(size_of::<tsw_partition>(), 112);
    assert_eq!(offset_of!(tsw_partition, path), 80);
}
