/**
 * The part of ggml's C API that Kvasir calls, as declared in ggml.h, ggml-alloc.h and ggml-backend.h of ggml 0.23.
 * `size_t` and `int64_t` take and give plain numbers as long as they are safe integers.
 */
const T1 = 'void* (void*, void*)' // (context, tensor) -> tensor
const T2 = 'void* (void*, void*, void*)'
const T3 = 'void* (void*, void*, void*, void*)'

export const BASE = {
  ggml_version: 'const char* ()',
  ggml_log_set: 'void (void*, void*)',
  ggml_time_us: 'int64_t ()',

  // contexts and tensors
  ggml_init: 'void* (ggml_init_params)',
  ggml_free: 'void (void*)',
  ggml_reset: 'void (void*)',
  ggml_used_mem: 'size_t (void*)',
  ggml_set_no_alloc: 'void (void*, bool)',
  ggml_tensor_overhead: 'size_t ()',
  ggml_graph_overhead_custom: 'size_t (size_t, bool)',
  ggml_new_tensor_4d: 'void* (void*, int, int64_t, int64_t, int64_t, int64_t)',
  ggml_set_input: 'void (void*)',
  ggml_set_output: 'void (void*)',
  ggml_set_name: 'void* (void*, const char*)',
  ggml_get_name: 'const char* (void*)',
  ggml_nbytes: 'size_t (void*)',
  ggml_op_name: 'const char* (int)',
  ggml_type_name: 'const char* (int)',
  ggml_type_size: 'size_t (int)',
  ggml_blck_size: 'int64_t (int)',

  // numbers
  ggml_quantize_chunk: 'size_t (int, void*, void*, int64_t, int64_t, int64_t, void*)',
  ggml_quantize_requires_imatrix: 'bool (int)',
  ggml_get_type_traits: 'void* (int)',
  ggml_fp32_to_fp16_row: 'void (void*, void*, int64_t)',
  ggml_fp16_to_fp32_row: 'void (void*, void*, int64_t)',
  ggml_fp32_to_bf16_row: 'void (void*, void*, int64_t)',
  ggml_bf16_to_fp32_row: 'void (void*, void*, int64_t)',

  // graphs
  ggml_new_graph_custom: 'void* (void*, size_t, bool)',
  ggml_build_forward_expand: 'void (void*, void*)',
  ggml_graph_n_nodes: 'int (void*)',
  ggml_graph_node: 'void* (void*, int)',

  // shape
  ggml_view_4d: 'void* (void*, void*, int64_t, int64_t, int64_t, int64_t, size_t, size_t, size_t, size_t)',
  ggml_reshape_4d: 'void* (void*, void*, int64_t, int64_t, int64_t, int64_t)',
  ggml_permute: 'void* (void*, void*, int, int, int, int)',
  ggml_cont_4d: 'void* (void*, void*, int64_t, int64_t, int64_t, int64_t)',
  ggml_cast: 'void* (void*, void*, int)',
  ggml_cpy: T2,
  ggml_concat: 'void* (void*, void*, void*, int)',
  ggml_repeat_4d: 'void* (void*, void*, int64_t, int64_t, int64_t, int64_t)',

  // elementwise
  ggml_add: T2,
  ggml_sub: T2,
  ggml_mul: T2,
  ggml_div: T2,
  ggml_scale_bias: 'void* (void*, void*, float, float)',
  ggml_scale: 'void* (void*, void*, float)',
  ggml_sqr: T1,
  ggml_sqrt: T1,
  ggml_log: T1,
  ggml_exp: T1,
  ggml_neg: T1,
  ggml_abs: T1,
  ggml_tanh: T1,
  ggml_relu: T1,
  ggml_sigmoid: T1,
  ggml_silu: T1,
  ggml_gelu: T1,
  ggml_swiglu: T1,
  ggml_geglu: T1,
  ggml_swiglu_split: T2,
  ggml_geglu_split: T2,

  // reductions and order
  ggml_sum_rows: T1,
  ggml_mean: T1,
  ggml_argmax: T1,
  ggml_cumsum: T1,
  ggml_argsort: 'void* (void*, void*, int)',
  ggml_argsort_top_k: 'void* (void*, void*, int)',
  ggml_top_k: 'void* (void*, void*, int)',

  // norms, matrices, rows
  ggml_rms_norm: 'void* (void*, void*, float)',
  ggml_norm: 'void* (void*, void*, float)',
  ggml_mul_mat: T2,
  ggml_mul_mat_set_hint: 'void (void*, int)',
  ggml_mul_mat_id: T3,
  ggml_out_prod: T2,
  ggml_get_rows: T2,
  ggml_set_rows: T3,

  // attention
  ggml_soft_max_ext: 'void* (void*, void*, void*, float, float)',
  ggml_flash_attn_ext: 'void* (void*, void*, void*, void*, void*, float, float, float)',
  ggml_flash_attn_ext_set_prec: 'void (void*, int)',
  ggml_rope_ext: 'void* (void*, void*, void*, void*, int, int, int, float, float, float, float, float, float)',

  // buffers
  ggml_backend_alloc_ctx_tensors_from_buft: 'void* (void*, void*)',
  ggml_backend_tensor_alloc: 'int (void*, void*, void*)',
  ggml_backend_tensor_set: 'void (void*, void*, size_t, size_t)',
  ggml_backend_tensor_get: 'void (void*, void*, size_t, size_t)',
  ggml_backend_buffer_free: 'void (void*)',
  ggml_backend_buffer_get_size: 'size_t (void*)',
  ggml_backend_buffer_name: 'const char* (void*)',
  ggml_backend_buffer_clear: 'void (void*, uint8_t)',
  ggml_backend_buffer_get_base: 'void* (void*)',
  ggml_backend_buffer_set_usage: 'void (void*, int)',
  ggml_backend_buft_alloc_buffer: 'void* (void*, size_t)',
  ggml_backend_buft_name: 'const char* (void*)',
  ggml_backend_buft_get_alignment: 'size_t (void*)',
  ggml_backend_buft_get_alloc_size: 'size_t (void*, void*)',
  ggml_backend_buft_is_host: 'bool (void*)',
  ggml_backend_cpu_buffer_type: 'void* ()',
  ggml_backend_cpu_buffer_from_ptr: 'void* (void*, size_t)',

  // allocators
  ggml_gallocr_new: 'void* (void*)',
  ggml_gallocr_free: 'void (void*)',
  ggml_gallocr_reserve: 'bool (void*, void*)',
  ggml_gallocr_alloc_graph: 'bool (void*, void*)',
  ggml_gallocr_get_buffer_size: 'size_t (void*, int)',
  ggml_backend_sched_new: 'void* (void*, void*, int, size_t, bool, bool)',
  ggml_backend_sched_free: 'void (void*)',
  ggml_backend_sched_reset: 'void (void*)',
  ggml_backend_sched_reserve: 'bool (void*, void*)',
  ggml_backend_sched_alloc_graph: 'bool (void*, void*)',
  ggml_backend_sched_graph_compute: 'int (void*, void*)',
  ggml_backend_sched_get_buffer_size: 'size_t (void*, void*)',

  // backends and devices
  ggml_backend_free: 'void (void*)',
  ggml_backend_name: 'const char* (void*)',
  ggml_backend_graph_compute: 'int (void*, void*)',
  ggml_backend_dev_init: 'void* (void*, const char*)',
  ggml_backend_dev_name: 'const char* (void*)',
  ggml_backend_dev_description: 'const char* (void*)',
  ggml_backend_dev_type: 'int (void*)',
  ggml_backend_dev_memory: 'void (void*, void*, void*)',
  ggml_backend_dev_buffer_type: 'void* (void*)',
  ggml_backend_dev_backend_reg: 'void* (void*)',
  ggml_backend_dev_supports_op: 'bool (void*, void*)',
  ggml_backend_reg_name: 'const char* (void*)',
  ggml_backend_reg_get_proc_address: 'void* (void*, const char*)',
} as const

/** In the registry library (libggml). */
export const REGISTRY = {
  ggml_backend_load_all_from_path: 'void (const char*)',
  ggml_backend_dev_count: 'size_t ()',
  ggml_backend_dev_get: 'void* (size_t)',
} as const

/** Functions of the CPU backend: they are found by name through its registry entry. */
export const CPU = {
  ggml_backend_set_n_threads: 'void (void*, int)',
  ggml_backend_dev_get_extra_bufts: 'void* (void*)',
  ggml_backend_get_features: 'void* (void*)',
  ggml_backend_set_abort_callback: 'void (void*, void*, void*)',
  ggml_threadpool_new: 'void* (void*)',
  ggml_threadpool_free: 'void (void*)',
  ggml_backend_cpu_set_threadpool: 'void (void*, void*)',
} as const
