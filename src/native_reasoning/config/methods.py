"""What each method is: formula, source, how ours differs and why, and how its authors ran it.

``nrt presets NAME`` and docs/objectives.md print this; papers.py has the settings. In the formulas
c_i = π(y*_i | x, z_k, y*_<i), l = log c, b the same log-probability after an empty trace, T tokens,
K traces, ŷ a sampled answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """A method as its source has it. ``formula`` is the update of one prompt, ``formulas`` that of
    a form which has another. ``differs`` says what the method's own recipe here has not as in the
    source, and why; ``forms`` says it of the others. ``published`` has the flags of the authors'
    runs that no preset sets."""

    title: str
    summary: str
    source: str
    formula: str
    differs: tuple[str, ...] = ()
    published: str = ""
    formulas: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_NRT_SOURCE = "Wang et al., Native Reasoning Models, arXiv 2602.11549, ICLR 2026"
_NRT_CLIP = "R'_k = max(0, R_k − R_base),  R_base = f of the empty trace"
_NRT_UPDATE = """A_k  = (R'_k − mean R') / std R'
ΔΘ   ∝ Σ_k [ A_k ∇log π(z_k) + Σ_i w_ki ∇l_ki ] + 0.3 Σ_open ∇log π(tag)"""
_NRT_DIFFERS = (
    "answer tokens weigh 1, as in the released code, where the paper's gradient has c_i ∂f/∂c_i "
    "(-paper): the authors say that fixed weights were needed for stability",
    "R' = max(0, R − R_base) is the paper's; the released code has no clip (-released)",
    "std is floored relative to the rewards, and flat groups get A = 0; the released code divides "
    "by a std that may be nearly zero",
    "the loss is divided by the number of traces of the step, not by a padded width",
)
_NRT_FORMS = {
    "paper": (
        "answer weights are not divided by the group's std (answer_scale none): whether the "
        "paper's are could not be verified",
    ),
    "released": (
        "sampled ids are scored as sampled; the released code decodes and encodes them again",
        "forced tags get no policy gradient, and the loss is not divided by a padded width",
        "its tag is a new token <|response_start|> without an opening one; ours is the model's own",
    ),
}
_NRT_RUN = (
    "--num-generations 8 --learning-rate 2e-6 --gradient-accumulation-steps 64 "
    "--steps-per-generation 256 --adam-beta2 0.95 --adam-epsilon 1e-15 --weight-decay 0.01 "
    "--warmup-steps 0.1 --max-grad-norm 1.0 --max-prompt-length 4096 --max-trace-length 2048 "
    "--max-answer-length 4096"
)


def _nrt(title: str, summary: str, f: str, w: str) -> Method:
    def formula(clip: str, weight: str) -> str:
        return f"R_k  = {f}\n{clip}\n{_NRT_UPDATE}\nw_ki = {weight}"

    formulas = {"paper": formula(_NRT_CLIP, w), "released": formula("R'_k = R_k", "1")}
    own = formula(_NRT_CLIP, "1")
    return Method(title, summary, _NRT_SOURCE, own, _NRT_DIFFERS, _NRT_RUN, formulas, _NRT_FORMS)


_JEPO_SOURCE = "Tang et al., arXiv 2503.19618, NeurIPS 2025; no public code"
_JEPO_RUN = "--num-generations 4 --gradient-accumulation-steps 64 --temperature 1.0"
_SPLICE = "the answer follows this model's own closing tag, not the source's prompt format"
_SHARED = (
    "the formula is the method's own recipe: this form takes f and the answer weight from it; clip,"
    " normalisation, ratio, format term and the tokens that f looks at are those of nrt-ws",
)

METHODS: dict[str, Method] = {
    "nrt-ws": _nrt(
        "NRT-WS(−log p)",
        "mean of c weighted by −log b: hard tokens count most",
        "1/T Σ c_i·(−b_i)",
        "c_i·(−b_i)/T",
    ),
    "nrt-ws-inverse": _nrt(
        "NRT-WS(1/p)",
        "mean of c/e^b: gain over the empty trace",
        "1/T Σ c_i/e^{b_i}",
        "(c_i/e^{b_i})/T",
    ),
    "nrt-gm": _nrt(
        "NRT-GM",
        "geometric mean of the answer tokens' probabilities",
        "(Π c_i)^{1/T}",
        "R_k/T",
    ),
    "nrt-am": _nrt("NRT-AM", "mean of the answer tokens' probabilities", "1/T Σ c_i", "c_i/T"),
    "nrt-logp": _nrt("NRT-logP", "log-probability of the answer", "Σ l_i", "1"),
    "nrt-p": _nrt("NRT-P", "probability of the whole answer", "Π c_i", "R_k"),
    "avg-logp": Method(
        "LBR, average log-probability",
        "mean log-probability of an answer token, exact gradient",
        "Kwiatkowski et al., Likelihood-Based Reward Designs, arXiv 2602.03979",
        """R_k = 1/T Σ l_i
ΔΘ  ∝ Σ_k [ (R_k − mean_{j≠k} R_j) ∇log π(z_k) + 1/T Σ_i ∇l_ki ]""",
        (
            "beta is 0, as in its long-answer runs; short answers: --objective.beta 1e-3",
            _SPLICE,
        ),
        "--num-generations 32 --learning-rate 1e-5 --lr-scheduler-type cosine",
    ),
    "verifree": Method(
        "VeriFree",
        "probability of the whole answer, exact gradient",
        "Zhou et al., arXiv 2505.21493, ICLR 2026; code sail-sg/VeriFree",
        """R_k = Π c_i, 0 without a closing tag
ΔΘ  ∝ Σ_k [ (R_k − mean_{j≠k} R_j) ∇log π(z_k) + R_k Σ_i ∇l_ki ]""",
        (
            "the source's answer is `> \\boxed{…} </answer>`, scored with its delimiters and cut "
            "inside the tag; the end token is left out, as there",
            _SPLICE,
            "only answers of fewer than 7 tokens were kept: --max-answer-length 7, as the end "
            "token is one",
        ),
        "--num-generations 8 --gradient-accumulation-steps 16 --learning-rate 1e-6 "
        "--lr-scheduler-type constant --max-trace-length 3000 --max-answer-length 7",
    ),
    "jepo": Method(
        "JEPO, n samples",
        "log of the group's mean probability of the answer",
        _JEPO_SOURCE,
        """S_k = Σ l_ki,  LME = log of the mean of e^S
A_k = clip( n (LME(all) − LME(all but k)) / std, −1, 1 ) + the same of −10·[open]
ΔΘ  ∝ Σ_k [ A_k ∇log π(z_k) + [closed] n softmax_k(S) Σ_i ∇l_ki ] − 1e-3 ∇KL""",
        (
            "the std is the group's: the paper does not say of what it is taken",
            "the format advantage is normalised and clipped like the other, so its size 10 is "
            "lost; the paper says only that it has a normalisation of its own",
            "KL is the k3 estimate on the sampled tokens: the paper names none",
            "the answer follows a closing tag, not 'the final answer is'; answer_coef (β_sup) is "
            "1, its value for long answers; short ones had 0 to 0.01",
        ),
        _JEPO_RUN,
        forms={
            "shared": (
                "the baseline's relu acts on S before the log of the mean, which is part of f",
            ),
        },
    ),
    "jepo-1": Method(
        "JEPO, one sample (JLB)",
        "log-probability of the answer, leave-one-out",
        _JEPO_SOURCE,
        """S_k = Σ l_ki
A_k = clip( (S_k − mean_{j≠k} S_j) / std, −1, 1 ) + the same of −10·[open]
ΔΘ  ∝ Σ_k [ A_k ∇log π(z_k) + [closed] Σ_i ∇l_ki ] − 1e-3 ∇KL""",
        (
            "std, format advantage, KL and tag are read as for jepo",
            "the bound of one sample with the other samples as its baseline: K is the number of "
            "such bounds that are averaged",
        ),
        _JEPO_RUN,
    ),
    "latro": Method(
        "LaTRO",
        "log-probability of the answer less the trace's divergence from the first policy",
        "Chen et al., arXiv 2411.04282; code SalesforceAIResearch/LaTRO",
        """R_k = Σ l_ki − 0.05 log( π(z_k)/π_0(z_k) );  open: 2·mean in place of Σ l
ΔΘ  ∝ Σ_k [ (R_k − mean_{j≠k} R_j) ∇log π(z_k without its tag) + Σ_i ∇l_ki ]""",
        (
            "the answer is trained, as in the paper; the released code's weight is 0 "
            "(--objective.answer-weight none)",
            "the stop decision gets no policy gradient, as in the released code: a bias that is "
            "kept (--objective.policy-tokens trace_tag mends it)",
            "the mean behind 2·mean is the group's; the released code takes that of the batch on "
            "one device, so that its update depends on the number of devices",
            "one update per optimiser step; the released code steps inside its accumulation",
            "kl_in_reward 0.05 is its value for GSM8K, 0.25 that for ARC",
        ),
        "--num-generations 16 --gradient-accumulation-steps 3 --learning-rate 5e-7 "
        "--lr-scheduler-type linear --warmup-steps 0 --max-trace-length 500",
    ),
    "rlpr": Method(
        "RLPR",
        "mean probability of the answer's tokens, less the first policy's without reasoning",
        "Yu et al., arXiv 2506.18254; code OpenBMB/RLPR",
        """R_k = 0.9 max(0, 1/T Σ c_i − 1/T Σ e^{b⁰_i}) + 0.1 [format],  0 in a wrong format
      −1 where ten words in a row occur ten times;  b⁰ the first policy, T without the end token
A_k = (R_k − mean R) / (std R + 1e-6)
ΔΘ  ∝ Σ_k Σ_t min(ρ A, clamp(ρ, 0.8, 1.27) A) of z_k and ŷ_k, per token of the step
groups with std R < 0.5·EMA(std) are left out from step 11""",
        (
            "groups that are left out are not replaced by sampling more prompts; they count in the"
            " divisor",
            "b⁰ follows an empty trace in this model's own format; the source's follows the prompt"
            " without tags (its issue 10 calls that a saving of compute)",
            "the entropy bonus of 1e-3 is left out: it is a default of its engine, not of the "
            "paper; rewards are not rounded to bfloat16",
            "filter_coef 0.5 is its value for Qwen, 0.9 that for Llama, 1.0 for Gemma; the mean "
            "behind it takes in the groups that are left out",
            "a group is flat, with A = 0, relative to the size of its rewards, as everywhere here;"
            " the source has std < 1e-6",
            "the token mean is over the optimiser step, not over one device's micro-batch",
        ),
        "--num-generations 8 --gradient-accumulation-steps 192 --steps-per-generation 768 "
        "--learning-rate 1e-6 --lr-scheduler-type constant --max-prompt-length 2048 "
        "--max-trace-length 3072",
    ),
    "nover": Method(
        "NOVER",
        "rank of the answer's perplexity within the group, plus efficiency and format",
        "Liu et al., arXiv 2505.16022, EMNLP 2025; code thinkwee/NOVER",
        """s_k = 1/(T·N_k) Σ l_ki,  N = max(1, 1 + log10 |z_k|),  under a copy that lags behind
R_k = (n − rank s_k)/n + share of the others that are longer and worse + [format]
      among the n traces in the right format; 0 for the others
A_k = (R_k − mean R) / (std R + 1e-4)
ΔΘ  ∝ Σ_k Σ_t min(ρ A, clamp(ρ, 0.9, 1.2) A) of z_k and ŷ_k, per token − 0.1 ∇KL""",
        (
            "the copy is of all weights; the source's is a LoRA adapter. It is mixed 0.9 to 0.1 "
            "every 100 steps, as there",
            "T counts the answer and its end token; the source's counts its <answer> tags",
            "the token mean is over the optimiser step; the source's is over one group",
        ),
        "--num-generations 8 --gradient-accumulation-steps 1 --learning-rate 1e-5 "
        "--temperature 0.6 --max-trace-length 2048",
        forms={
            "shared": (
                "ties share their rank: a group of equal rewards then teaches nothing",
                "the current policy scores, and efficiency and format rewards are left out",
            ),
        },
    ),
    "dro": Method(
        "DRO, R3",
        "log-probability gained by reasoning, at the tokens that react to it",
        "Xu et al., arXiv 2506.13351 v1; no public code",
        """σ_i = std over k of l_ki,  ω_i = σ_i/Σσ
R_k = Σ_i ω_i l_ki − Σ_i ω_i b_i
A_k = (R_k − mean R) / std R;  a trace in a wrong format counts in mean and σ, not in the loss
ΔΘ  ∝ Σ_k A_k ∇log π(z_k, ŷ_k) − 1e-3 ∇KL""",
        (
            "ω is our choice: the paper says only that it grows with σ",
            "the masked reasoning is an empty trace; it cancels in A",
            "its filter of prompts (token ranks, then the largest σ) is left out: the thresholds "
            "are not known to us",
            "its length reward is left out: the coefficient is not known to us",
            "its upper clip of 0.2 is left out: there is one update per rollout",
        ),
        "--num-generations 16 --gradient-accumulation-steps 128 --top-p 0.95 "
        "--max-trace-length 8192",
    ),
    "rlvr": Method(
        "RLVR by exact match",
        "1 where the sampled answer is the reference, else 0: a verified control",
        "GRPO, arXiv 2402.03300, with an exact-match verifier",
        """R_k = [ŷ_k = y*], 0 in a wrong format
A_k = (R_k − mean R) / std R
ΔΘ  ∝ Σ_k A_k ∇log π(z_k, ŷ_k);  with leave-one-out and no std its mean is VeriFree's""",
        ("answers are compared as text without surrounding white space",),
        "--num-generations 8",
    ),
    "sft": Method(
        "SFT",
        "supervised training of the answer after an empty trace; nothing is sampled",
        "the baseline of every paper",
        "ΔΘ ∝ Σ_i ∇b_i",
    ),
    "sft-think": Method(
        "SFT after the model's own traces",
        "the answer term alone, after sampled traces",
        "control",
        "ΔΘ ∝ Σ_k Σ_i ∇l_ki",
    ),
}


def differences(method: Method, form: str) -> tuple[str, ...]:
    """What a form of a method does otherwise than its source."""
    if not form:
        return method.differs
    return (_SHARED if form == "shared" else ()) + method.forms.get(form, ())
