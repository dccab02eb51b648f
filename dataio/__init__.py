"""NIfTI corpora -> verified sharded Zarr -> batches of crops on the device.

Files in reading order.

What everything uses: errors, progress, counter_random.

Finding sources: source, discovery, discover, tree, nifti_name, label_name, folder_images,
label_pairing, subjects; the layouts layout_folder, layout_msd, layout_nnunet, layout_bids,
layout_nnssl, layout_csv; msd_download, remote_tree; phantom and phantom_body draw a cohort where
there is none.

Reading a source: scratch, libdeflate, gzip_stream, nifti_header, nifti_file, header_peek, grid,
orientation, resample, values, intensity, label, volume.

Writing a corpus: conversion, codec, ome, chunk_gather (and _chunks.c), chunk_encode, shard_writer,
manifest, quarantine, root, block_file, store, remote, volume_ids, known_sources,
volume_writer, job, worker, pool, dask_runner, convert, forecast.

A corpus: chunk_table, table_writer, corpus, verify, inspection, histograms, montage, export_nifti.

Reading crops: chunk_boxes, chunk_decode (and _crops.c), shard_files, remote_shards, residency,
buffer_pool, shard_reader, open_corpus, normalisation, volume_access.

Feeding batches: loader_config, sampler, augment, crop_request, crop_job, draws, read_threads,
crop_source, graph_spec, dali_ops, dali_graph, direct_graph, finish, batch, loader_state, loader.

Decoding on the GPU: blosc_frame, device_copy, inflate, stream_table, stream_pack (and _pack.h),
stage_times, device_reader, device_source.
"""
