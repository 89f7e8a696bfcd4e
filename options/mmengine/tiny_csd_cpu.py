# Stage 2 without a GPU, by MMEngine: the tiny network distilled by CSD from the wide one. See docs/mmengine.md.
custom_imports = dict(imports=["csd_plugin.integrate.mmengine"], allow_failed_imports=False)
randomness = dict(seed=0)
max_iters = 2500

model = dict(
    type="csd.CSDDistiller",
    student=dict(type="HalfNet", preset="tiny", checkpoint="tiny"),
    teachers=dict(t=dict(type="HalfNet", preset="wide", checkpoint="wide")),
    objective=dict(type="CSD"),
    weights=dict(spatial=0.1, temporal=0.1),
    pixel_loss=dict(type="PyramidSSIMLoss", l1_weight=0.5),
    precision="bf16",  # on a GPU: optim_wrapper = dict(type="AmpOptimWrapper", ..) does the same
)

train_dataloader = dict(
    dataset=dict(
        type="csd.PairedVideoDataset",
        dataroot="datasets/rain_clips",  # made by csd rain, see options/README.md
        num_frame=7,  # N = L + 4
        num_target=3,  # L
        gt_size=96,
        scale_range=[0.6, 1.4],
        use_hflip=True,
        random_reverse=True,
        cache_mb=2000,
    ),
    sampler=dict(type="csd.ClipSampler"),
    collate_fn=dict(type="default_collate"),
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
)
val_dataloader = dict(
    dataset=dict(
        type="csd.PairedVideoTestDataset",
        dataroot="datasets/rain_clips",
        num_frame=3,
        frame_range=[20, 23],
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    batch_size=1,
    num_workers=1,
)
val_evaluator = dict(type="csd.DerainingMetric")
test_dataloader, test_evaluator = val_dataloader, val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="Adam", lr=5e-4, betas=(0.9, 0.99)),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, T_max=max_iters, eta_min=1e-5),
]

default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=500, save_best="nturain_y/psnr", rule="greater"),
    logger=dict(type="LoggerHook", interval=50),
)
custom_hooks = [
    dict(type="csd.DistillHook"),
    # An average that warms up, about as train.ema_decay: 0.999 does under BasicSR.
    dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=0.001, gamma=9),
]
log_processor = dict(by_epoch=False)
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
