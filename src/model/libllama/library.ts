/**
 * libllama, used for what the ecosystem already has right: vocabularies, samplers, grammars. Its engine (contexts,
 * decoding) is declared here too, but only as the oracle and the peer of `bench/` and the tests.
 */
import koffi from 'koffi'
import { type Declared, declare } from '../../ggml/declare.ts'
import { loadNative } from '../../ggml/library.ts'

const LLAMA = {
  llama_version: 'const char* ()',
  llama_backend_init: 'void ()',
  llama_log_set: 'void (void*, void*)',
  llama_model_default_params: 'struct:llama_model_params ()',
  llama_model_load_from_file: 'void* (const char*, llama_model_params)',
  llama_model_free: 'void (void*)',
  llama_model_get_vocab: 'void* (void*)',
  llama_model_chat_template: 'const char* (void*, const char*)',

  llama_vocab_type: 'int (void*)',
  llama_vocab_n_tokens: 'int (void*)',
  llama_vocab_get_text: 'const char* (void*, int)',
  llama_vocab_get_attr: 'int (void*, int)',
  llama_vocab_is_eog: 'bool (void*, int)',
  llama_vocab_is_control: 'bool (void*, int)',
  llama_vocab_bos: 'int (void*)',
  llama_vocab_eos: 'int (void*)',
  llama_vocab_eot: 'int (void*)',
  llama_vocab_sep: 'int (void*)',
  llama_vocab_nl: 'int (void*)',
  llama_vocab_pad: 'int (void*)',
  llama_vocab_get_add_bos: 'bool (void*)',
  llama_vocab_get_add_eos: 'bool (void*)',
  llama_tokenize: 'int (void*, void*, int, void*, int, bool, bool)',
  llama_detokenize: 'int (void*, void*, int, void*, int, bool, bool)',
  llama_token_to_piece: 'int (void*, int, void*, int, int, bool)',

  llama_sampler_chain_default_params: 'struct:llama_sampler_chain_params ()',
  llama_sampler_chain_init: 'void* (llama_sampler_chain_params)',
  llama_sampler_chain_add: 'void (void*, void*)',
  llama_sampler_apply: 'void (void*, void*)',
  llama_sampler_accept: 'void (void*, int)',
  llama_sampler_reset: 'void (void*)',
  llama_sampler_clone: 'void* (void*)',
  llama_sampler_free: 'void (void*)',
  llama_sampler_init_greedy: 'void* ()',
  llama_sampler_init_dist: 'void* (uint32_t)',
  llama_sampler_init_top_k: 'void* (int)',
  llama_sampler_init_top_p: 'void* (float, size_t)',
  llama_sampler_init_min_p: 'void* (float, size_t)',
  llama_sampler_init_typical: 'void* (float, size_t)',
  llama_sampler_init_temp: 'void* (float)',
  llama_sampler_init_temp_ext: 'void* (float, float, float)',
  llama_sampler_init_xtc: 'void* (float, float, size_t, uint32_t)',
  llama_sampler_init_top_n_sigma: 'void* (float)',
  llama_sampler_init_mirostat: 'void* (int, uint32_t, float, float, int)',
  llama_sampler_init_mirostat_v2: 'void* (uint32_t, float, float)',
  llama_sampler_init_grammar: 'void* (void*, const char*, const char*)',
  llama_sampler_init_penalties: 'void* (int, int, float, float, float)',
  llama_sampler_init_dry: 'void* (void*, float, float, int, int, const char**, size_t)',
  llama_sampler_init_logit_bias: 'void* (int, int, void*)',

  // the oracle
  llama_context_default_params: 'struct:llama_context_params ()',
  llama_init_from_model: 'void* (void*, llama_context_params)',
  llama_free: 'void (void*)',
  llama_set_n_threads: 'void (void*, int, int)',
  llama_attach_threadpool: 'void (void*, void*, void*)',
  llama_batch_init: 'struct:llama_batch (int, int, int)',
  llama_batch_free: 'void (llama_batch)',
  llama_batch_get_one: 'struct:llama_batch (void*, int)',
  llama_decode: 'int (void*, llama_batch)',
  llama_synchronize: 'void (void*)',
  llama_get_logits_ith: 'void* (void*, int)',
  llama_get_embeddings_seq: 'void* (void*, int)',
  llama_model_n_embd: 'int (void*)',
  llama_get_memory: 'void* (void*)',
  llama_memory_clear: 'void (void*, bool)',
  llama_memory_seq_rm: 'bool (void*, int, int, int)',
  llama_state_seq_get_size: 'size_t (void*, int)',
  llama_state_seq_get_data: 'size_t (void*, void*, size_t, int)',
  llama_state_seq_set_data: 'size_t (void*, void*, size_t, int)',
} as const

/** Set by {@link loadLlama}. */
export let llama: Declared<typeof LLAMA>

/** Loads ggml, then libllama. @throws KvasirError NATIVE_MISSING */
export async function loadLlama(): Promise<void> {
  if (llama) return
  const native = await loadNative()
  if (llama) return
  defineStructs()
  const functions = declare(koffi.load(native.files.llama), LLAMA)
  functions.llama_log_set(process.env['KVASIR_NATIVE_LOG'] ? null : native.silentLog, null)
  functions.llama_backend_init()
  llama = functions
}

/** Layouts of llama.h at the pinned version; a test compares their sizes and the defaults they give. */
function defineStructs(): void {
  koffi.struct('llama_model_params', {
    devices: 'void*',
    tensor_buft_overrides: 'void*',
    n_gpu_layers: 'int',
    split_mode: 'int',
    load_mode: 'int',
    lazy_mode: 'int',
    main_gpu: 'int',
    tensor_split: 'void*',
    progress_callback: 'void*',
    progress_callback_user_data: 'void*',
    kv_overrides: 'void*',
    vocab_only: 'bool',
    check_tensors: 'bool',
    use_extra_bufts: 'bool',
    no_host: 'bool',
    no_alloc: 'bool',
    load_mtp: 'bool',
  })
  koffi.struct('llama_context_params', {
    n_ctx: 'uint32',
    n_batch: 'uint32',
    n_ubatch: 'uint32',
    n_seq_max: 'uint32',
    n_rs_seq: 'uint32',
    n_outputs_max: 'uint32',
    n_outputs_max_per_seq: 'uint32',
    n_threads: 'int',
    n_threads_batch: 'int',
    ctx_type: 'int',
    rope_scaling_type: 'int',
    pooling_type: 'int',
    attention_type: 'int',
    flash_attn_type: 'int',
    rope_freq_base: 'float',
    rope_freq_scale: 'float',
    yarn_ext_factor: 'float',
    yarn_attn_factor: 'float',
    yarn_beta_fast: 'float',
    yarn_beta_slow: 'float',
    yarn_orig_ctx: 'uint32',
    defrag_thold: 'float',
    cb_eval: 'void*',
    cb_eval_user_data: 'void*',
    type_k: 'int',
    type_v: 'int',
    abort_callback: 'void*',
    abort_callback_data: 'void*',
    embeddings: 'bool',
    offload_kqv: 'bool',
    no_perf: 'bool',
    op_offload: 'bool',
    swa_full: 'bool',
    kv_unified: 'bool',
    samplers: 'void*',
    n_samplers: 'size_t',
    ctx_other: 'void*',
  })
  koffi.struct('llama_batch', {
    n_tokens: 'int',
    token: 'void*',
    embd: 'void*',
    pos: 'void*',
    n_seq_id: 'void*',
    seq_id: 'void*',
    logits: 'void*',
  })
  koffi.struct('llama_token_data', { id: 'int', logit: 'float', p: 'float' })
  koffi.struct('llama_token_data_array', { data: 'void*', size: 'size_t', selected: 'int64', sorted: 'bool' })
  koffi.struct('llama_sampler_chain_params', { no_perf: 'bool' })
}
