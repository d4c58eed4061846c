// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"k8s.io/client-go/discovery"

	"github.com/sluice-dev/sluice/test/figures"
)

const (
	kibi = 1 << 10
	mebi = 1 << 20
)

// usage is what everything has used until now.
type usage struct {
	at          time.Time
	spent       spending
	database    float64 // bytes
	apiRSS      float64 // bytes
	controllers controllerUsage
	heartbeats  float64
	probes      float64
	conflicts   float64
	passes      []metric // of the controllers
}

// spending is what grows with what is done.
type spending struct {
	apiCPU, etcdCPU, controllerCPU float64 // seconds
	written                        float64 // bytes that etcd wrote to its log
	specWrites, statusWrites       float64 // of NodeImageSets
}

// plus adds another spending, n times.
func (s spending) plus(n float64, other spending) spending {
	return spending{
		apiCPU: s.apiCPU + n*other.apiCPU, etcdCPU: s.etcdCPU + n*other.etcdCPU, controllerCPU: s.controllerCPU + n*other.controllerCPU,
		written:    s.written + n*other.written,
		specWrites: s.specWrites + n*other.specWrites, statusWrites: s.statusWrites + n*other.statusWrites,
	}
}

// dividedBy is what one of n things spent, if there was any.
func (s spending) dividedBy(n float64) spending { return spending{}.plus(1/max(n, 1), s) }

// usage reads it. It costs the API server itself some tenths of a second of the processor's time.
func (r *rig) usage(ctx context.Context) (*usage, error) {
	requests, err := r.apiMetrics(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the metrics of the API server: %w", err)
	}
	u := &usage{at: time.Now(), heartbeats: float64(r.heartbeats.Load()), probes: float64(r.probe.cycles.Load())}
	u.spent.specWrites, u.spent.statusWrites = writes(requests, ""), writes(requests, "status")
	u.conflicts = sum(requests, "apiserver_request_total", "group", "sluice.dev", "code", "409")
	stored, err := scrape(ctx, r.server.EtcdURL()+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("read the metrics of etcd: %w", err)
	}
	u.database = sum(stored, "etcd_mvcc_db_total_size_in_bytes")
	u.spent.written = sum(stored, "etcd_disk_wal_write_bytes_total")
	for _, one := range r.controllers.live() {
		if passes, err := scrape(ctx, one.metrics); err == nil { // one that has just ended has none
			u.passes = append(u.passes, passes...)
		}
	}
	u.controllers = r.controllers.usage()
	u.spent.controllerCPU = u.controllers.cpu.Seconds()
	apiServer, etcd, err := r.server.Processes()
	if err != nil {
		return nil, err
	}
	if u.spent.apiCPU, u.apiRSS, err = ofProcess(apiServer); err != nil {
		return nil, err
	}
	u.spent.etcdCPU, _, err = ofProcess(etcd)
	return u, err
}

// ofProcess is the processor's time in seconds that it has had, and its memory in bytes.
func ofProcess(process procfs.Proc) (cpu, rss float64, err error) {
	stat, err := process.Stat()
	return stat.CPUTime(), float64(stat.ResidentMemory()), err
}

func (r *rig) apiMetrics(ctx context.Context) ([]metric, error) {
	api, err := discovery.NewDiscoveryClientForConfig(r.server.Config)
	if err != nil {
		return nil, err
	}
	data, err := api.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	return parseMetrics(data)
}

// measurement is what was measured of a case.
type measurement struct {
	took          time.Duration
	spent         spending
	before, after *usage
}

// during does something, within the bound of a case, and measures what it cost. It returns what it
// knows also when that fails; nil if that is nothing.
func (r *rig) during(ctx context.Context, do func(context.Context) error) (*measurement, error) {
	if err := r.controllers.resetPeaks(); err != nil {
		return nil, err
	}
	before, err := r.usage(ctx)
	if err != nil {
		return nil, err
	}
	r.samples.reset()
	bounded, cancel := context.WithTimeoutCause(ctx, r.opts.bound, fmt.Errorf("it took longer than %v", r.opts.bound))
	defer cancel()
	failed := do(bounded)
	took := time.Since(before.at)
	after, err := r.usage(ctx)
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	return &measurement{took: took, spent: after.spent.plus(-1, before.spent), before: before, after: after}, failed
}

// measure adds the figures of a case, without what heartbeats and probes cost during it.
func (r *rig) measure(ctx context.Context, results *figures.Results, name string, do func(context.Context) error) error {
	m, err := r.during(ctx, do)
	if m == nil {
		return err
	}
	spent := m.spent.plus(-m.heartbeats(), r.heartbeat).plus(-m.probes(), r.probing)
	nodes := float64(r.opts.nodes)
	add := func(figure string, value float64, unit string) { results.Add(name+"_"+figure, value, unit) }
	add("took", m.took.Seconds(), "s")
	add("api_cpu", 1000*spent.apiCPU/nodes, "ms a node")
	add("etcd_cpu", 1000*spent.etcdCPU/nodes, "ms a node")
	add("etcd_written", spent.written/kibi/nodes, "KiB a node")
	add("controller_cpu", 1000*spent.controllerCPU/nodes, "ms a node")
	add("spec_writes", spent.specWrites/nodes, "a node")
	add("status_writes", spent.statusWrites/nodes, "a node")
	r.addStates(results, name, m)
	return err
}

// measureIdle measures what a heartbeat costs, and just being there for the time between two.
func (r *rig) measureIdle(ctx context.Context, results *figures.Results) error {
	m, err := r.during(ctx, r.wait)
	if m == nil {
		return err
	}
	r.heartbeat = m.spent.dividedBy(m.heartbeats())
	r.addRates(results, "idle", m.took, m.spent)
	results.Add("idle_heartbeats", m.heartbeats()/m.took.Seconds(), "a second")
	r.addStates(results, "idle", m)
	return err
}

// measureProbes measures what a cycle of the probe costs besides.
func (r *rig) measureProbes(ctx context.Context, results *figures.Results) error {
	r.probe.begin()
	m, err := r.during(ctx, r.wait)
	if m == nil {
		return err
	}
	spent := m.spent.plus(-m.heartbeats(), r.heartbeat)
	r.probing = spent.dividedBy(m.probes())
	r.addRates(results, "probes", m.took, spent)
	r.addStates(results, "probes", m)
	return err
}

func (r *rig) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(r.opts.idle):
		return nil
	}
}

// addRates adds what was spent in a second.
func (r *rig) addRates(results *figures.Results, name string, took time.Duration, spent spending) {
	add := func(figure string, value float64, unit string) {
		results.Add(name+"_"+figure, value/took.Seconds(), unit)
	}
	add("api_cpu", 1000*spent.apiCPU, "ms a second")
	add("etcd_cpu", 1000*spent.etcdCPU, "ms a second")
	add("etcd_written", spent.written/kibi, "KiB a second")
	add("controller_cpu", 1000*spent.controllerCPU, "ms a second")
}

// addStates adds what is no spending.
func (r *rig) addStates(results *figures.Results, name string, m *measurement) {
	add := func(figure string, value float64, unit string) { results.Add(name+"_"+figure, value, unit) }
	add("conflicts", m.after.conflicts-m.before.conflicts, "requests")
	add("controllers_ended", float64(m.after.controllers.ended-m.before.controllers.ended), "controllers")
	add("etcd_database", m.after.database/mebi, "MiB")
	add("api_rss", m.after.apiRSS/mebi, "MiB")
	add("controller_rss", m.after.controllers.peak/mebi, "MiB")
	add("pass_p99", 1000*quantile(passes(m.before), passes(m.after)), "ms")
	for _, kind := range r.samples.take() {
		results.Percentiles(name+"_"+kind.name, kind.unit).Add(kind.values, kind.percents...)
	}
}

func (m *measurement) heartbeats() float64 { return m.after.heartbeats - m.before.heartbeats }

func (m *measurement) probes() float64 { return m.after.probes - m.before.probes }

// writes counts the writes of a part of NodeImageSets that succeeded.
func writes(requests []metric, part string) (count float64) {
	for _, verb := range []string{"POST", "PUT", "PATCH", "APPLY"} {
		for _, code := range []string{"200", "201"} {
			count += sum(requests, "apiserver_request_total", "resource", "nodeimagesets", "subresource", part, "verb", verb, "code", code)
		}
	}
	return count
}

func passes(u *usage) map[float64]float64 {
	return buckets(u.passes, "controller_runtime_reconcile_time_seconds", "controller", "distribution")
}

// quantile is the bound that 99 % of what a histogram has counted in between did not exceed. Counts of
// a process that has ended meanwhile are lost.
func quantile(before, after map[float64]float64) float64 {
	var bounds []float64
	for bound := range after {
		bounds = append(bounds, bound)
	}
	slices.Sort(bounds)
	if len(bounds) == 0 {
		return 0
	}
	in := func(bound float64) float64 { return after[bound] - before[bound] }
	all := in(bounds[len(bounds)-1])
	for _, bound := range bounds {
		if in(bound) >= 0.99*all {
			return bound
		}
	}
	return bounds[len(bounds)-1]
}

// samples are what is measured many times during a case.
type samples struct {
	mu  sync.Mutex
	all map[string][]float64
}

// sampled says how each kind of samples is shown.
var sampled = []struct {
	name, unit string
	percents   []int
}{
	{"watch_lag", "ms", []int{50, 99}},
	{"admitted_after", "ms", []int{50, 99}},
	{"ready_after", "ms", []int{50, 99}},
	{"status_behind", "s", []int{99}},
}

func newSamples() *samples { return &samples{all: map[string][]float64{}} }

func (s *samples) add(name string, value float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[name] = append(s.all[name], value)
}

func (s *samples) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.all)
}

// taken are samples of a kind.
type taken struct {
	name, unit string
	percents   []int
	values     []float64
}

// take returns those kinds of which there are any.
func (s *samples) take() (all []taken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range sampled {
		if values := s.all[kind.name]; len(values) > 0 {
			all = append(all, taken{kind.name, kind.unit, kind.percents, slices.Clone(values)})
		}
	}
	return all
}
