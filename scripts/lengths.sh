#!/bin/sh
# Makes docs/quality/lengths anew: accuracy by the length of the context, at a quarter of the bytes, on the house model. More than an
# hour on two cores; what is in the files already is not run again.
set -e
cd "$(dirname "$0")/.."
policies=full,random,streaming-llm,snapkv,ada-kv,cake,compresskv,razorattention,uncomp
policies="$policies,kivi?bits=2&residual=32,gear,mikv?hi=8,zipcache,types?k=q8_0&v=q8_0,types?k=q4_0&v=q4_0"
out=docs/quality/lengths
mkdir -p $out
kvasir() { node --import tsx src/cli/main.ts "$@"; }
rows() { kvasir eval -t 1 --lengths 512,1024,2048,4096,8192 --limit 5 --policies "$policies" --budgets 0.25 --shared-prompts --compress-at question "$@"; }
rows --tasks niah_multikey,rag --mode multi-request --out $out/known.jsonl &
rows --tasks niah_multikey,rag --mode multi-turn --out $out/first.jsonl
wait
kvasir report $out/*.jsonl --out $out
