// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

// platform is that of every Fake.
const platform = "linux/amd64"

// missPause is how long a Fake waits after a mirror's miss before it asks again.
const missPause = 5 * time.Second

// workTick is the time between two progress reports while a Fake unpacks.
const workTick = time.Second

// Record is what an image name means in a runtime.
type Record struct {
	Digest digest.Digest
	// Pinned reports whether any client has pinned the name against the kubelet's garbage
	// collection.
	Pinned bool
}

// Fake is a Runtime in memory.
type Fake struct {
	Upstream, Mirror *Registry
	// PerBlob is how long each blob takes to arrive.
	PerBlob time.Duration
	// Unpacking is how long it takes to unpack the image after the last blob.
	Unpacking time.Duration
	// Fail, if set, is called before each pull. The pull ends with its error.
	Fail func(nodeagent.PullRequest) error

	mu       sync.Mutex
	contents map[digest.Digest]content
	ingests  map[digest.Digest]chan struct{} // closed when the one pull that fetches the blob is done with it
	leased   map[imageref.Reference][]digest.Digest
	records  map[string]*record
	watchers map[chan nodeagent.Change]chan []nodeagent.Finding
	findings []nodeagent.Finding
	sources  map[digest.Digest]map[string]string // the labels of a content's sources
	mirrors  map[chan Creation]bool
	stopped  error
	lost     chan struct{}

	pulling, mostPulling int
	pulls                []nodeagent.PullRequest
}

type record struct {
	digest          digest.Digest
	ours, theirsPin bool
}

var _ nodeagent.Runtime = (*Fake)(nil)

// NewFake returns a Fake without any image.
func NewFake() *Fake {
	return &Fake{
		Upstream: NewRegistry(), Mirror: NewRegistry(),
		contents: map[digest.Digest]content{}, ingests: map[digest.Digest]chan struct{}{},
		leased:  map[imageref.Reference][]digest.Digest{},
		records: map[string]*record{}, watchers: map[chan nodeagent.Change]chan []nodeagent.Finding{},
		sources: map[digest.Digest]map[string]string{}, mirrors: map[chan Creation]bool{}, lost: make(chan struct{}),
	}
}

// Import gives the node what a mirror has under a digest, and a name for it.
func (f *Fake) Import(name string, d digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		_, missing := f.tree(d)
		if len(missing) == 0 {
			break
		}
		for _, m := range missing {
			f.contents[m], _ = f.Mirror.fetch(m)
		}
	}
	f.set(name, d, false)
}

// Check implements nodeagent.Runtime.
func (f *Fake) Check(_ context.Context, ref imageref.Reference, want digest.Digest) (nodeagent.Presence, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped != nil {
		return nodeagent.Presence{}, f.stopped
	}
	for _, name := range ref.Names(want) {
		if r := f.records[name]; r == nil || r.digest != want {
			return nodeagent.Presence{}, nil
		}
	}
	blobs, missing := f.tree(want)
	if len(missing) > 0 {
		return nodeagent.Presence{}, nil
	}
	return nodeagent.Presence{Present: true, SizeBytes: size(blobs)}, nil
}

// Pull implements nodeagent.Runtime.
func (f *Fake) Pull(ctx context.Context, req nodeagent.PullRequest, onProgress func(nodeagent.Progress)) (nodeagent.Result, error) {
	f.mu.Lock()
	f.pulls = append(f.pulls, req)
	f.pulling++
	f.mostPulling = max(f.mostPulling, f.pulling)
	stopped := f.stopped
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pulling--
	}()
	if stopped != nil {
		return nodeagent.Result{}, stopped
	}
	if f.Fail != nil {
		if err := f.Fail(req); err != nil {
			return nodeagent.Result{}, err
		}
	}

	p := nodeagent.Progress{Digest: req.Digest}
	if req.Policy == v1alpha1.RegistryPolicyLocal {
		var err error
		if p.Digest, err = f.findNamed(req.Ref); err != nil {
			return nodeagent.Result{}, err
		}
	} else if p.Digest == "" {
		var err error
		if p.Digest, err = f.Upstream.resolve(req.Ref.Path(), req.Ref.Tag(), req.Credentials); err != nil {
			return nodeagent.Result{}, err
		}
	}
	onProgress(p)
	if err := f.fetchMissing(ctx, req, &p, onProgress); err != nil {
		return nodeagent.Result{}, err
	}
	p.Received = true
	for left := f.Unpacking; left > 0; left -= workTick {
		onProgress(p)
		if !sleep(ctx, min(left, workTick)) {
			return nodeagent.Result{}, context.Cause(ctx)
		}
	}
	f.mu.Lock()
	blobs, _ := f.tree(p.Digest)
	f.announceImage(req.Ref, p.Digest)
	for _, name := range req.Ref.Names(p.Digest) {
		f.set(name, p.Digest, req.Pinned)
	}
	delete(f.leased, req.Ref)
	f.mu.Unlock()
	result := nodeagent.Result{Digest: p.Digest, SizeBytes: size(blobs), PulledBytes: p.PulledBytes, Source: v1alpha1.SourceLocal}
	if p.PulledBytes > 0 {
		result.Source = v1alpha1.SourceMirror
		if req.Policy == v1alpha1.RegistryPolicyDefault {
			result.Source = v1alpha1.SourceUpstream
		}
	}
	return result, nil
}

// findNamed finds what a name means on the node, and all of its content.
func (f *Fake) findNamed(ref imageref.Reference) (digest.Digest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.records[ref.String()]
	if r == nil {
		return "", nodeagent.ErrImageNotOnNode
	}
	if blobs, missing := f.tree(r.digest); len(missing) > 0 || len(blobs) == 0 {
		return "", nodeagent.ErrImageNotOnNode
	}
	return r.digest, nil
}

// fetchMissing fetches manifests, config and layers until nothing is missing.
func (f *Fake) fetchMissing(ctx context.Context, req nodeagent.PullRequest, p *nodeagent.Progress, onProgress func(nodeagent.Progress)) error {
	for {
		f.mu.Lock()
		blobs, missing := f.tree(p.Digest)
		f.mu.Unlock()
		if p.SizeBytes = size(blobs); len(missing) == 0 {
			if len(blobs) == 0 {
				return fmt.Errorf("%w: %s", nodeagent.ErrPlatformNotProvided, platform)
			}
			return nil
		}
		var missed error
		for _, d := range missing {
			n, err := f.fetch(ctx, req, d)
			if err != nil {
				missed = err
				continue
			}
			p.PulledBytes += n
			onProgress(*p)
		}
		if missed == nil {
			continue
		}
		if req.Policy == v1alpha1.RegistryPolicyDefault || !errors.Is(missed, errMissing) {
			return missed
		}
		if !sleep(ctx, missPause) {
			return fmt.Errorf("%w: %w", nodeagent.ErrNotOnMirror, missed)
		}
	}
}

// fetch returns the bytes that it fetched: 0 if another pull fetched the blob.
func (f *Fake) fetch(ctx context.Context, req nodeagent.PullRequest, d digest.Digest) (int64, error) {
	present, err := f.ingest(ctx, d)
	if present || err != nil {
		return 0, err
	}
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(f.ingests[d])
		delete(f.ingests, d)
	}()
	var c content
	if req.Policy == v1alpha1.RegistryPolicyDefault {
		if c, err = f.Upstream.fetch(d); errors.Is(err, errMissing) {
			err = fmt.Errorf("%w: %s", nodeagent.ErrImageNotFound, d)
		}
	} else if c, err = f.Mirror.fetch(d); errors.Is(err, nodeagent.ErrRegistryUnavailable) {
		err = fmt.Errorf("%w: %w", nodeagent.ErrNotOnMirror, err)
	}
	if err != nil {
		return 0, err
	}
	if !sleep(ctx, f.PerBlob) {
		return 0, context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.contents[d] = c
	f.announce(req.Ref, d)
	f.leased[req.Ref] = append(f.leased[req.Ref], d)
	return c.descriptor.Size, nil
}

// ingest makes the caller the one that fetches a blob. While another pull does, it waits for it, and
// reports whether the blob is present then.
func (f *Fake) ingest(ctx context.Context, d digest.Digest) (present bool, err error) {
	for {
		f.mu.Lock()
		_, present := f.contents[d]
		done := f.ingests[d]
		if !present && done == nil {
			f.ingests[d] = make(chan struct{})
		}
		f.mu.Unlock()
		if present || done == nil {
			return present, nil
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-done:
		}
	}
}

// announceImage announces all content of an image that is there.
func (f *Fake) announceImage(ref imageref.Reference, root digest.Digest) {
	c, ok := f.contents[root]
	if !ok {
		return
	}
	f.announce(ref, root)
	for _, child := range c.children {
		f.announceImage(ref, digest.Digest(child.Digest.String()))
	}
}

// announce labels content with its source and tells the mirrors of it.
func (f *Fake) announce(ref imageref.Reference, d digest.Digest) {
	if f.sources[d] == nil {
		f.sources[d] = map[string]string{}
	}
	registry := url.URL{Host: ref.Domain()}
	f.sources[d]["containerd.io/distribution.source."+registry.Hostname()] = ref.Path()
	for mirror := range f.mirrors {
		mirror <- Creation{Digest: d, Labels: maps.Clone(f.sources[d])}
	}
}

// Unlabel takes the labels of their sources from content.
func (f *Fake) Unlabel(d digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sources, d)
}

// Created is what a mirror on the node is told from now on, at most 100 events.
func (f *Fake) Created(context.Context) <-chan Creation {
	f.mu.Lock()
	defer f.mu.Unlock()
	created := make(chan Creation, 100)
	f.mirrors[created] = true
	return created
}

// tree returns the config and the layers of an image for the platform, as far as its manifests are
// there, and the digests to fetch next.
func (f *Fake) tree(root digest.Digest) (blobs []content, missing []digest.Digest) {
	c, ok := f.contents[root]
	switch {
	case !ok:
		return nil, []digest.Digest{root}
	case c.index:
		for _, child := range c.children {
			if child.Platform.String() == platform {
				return f.tree(digest.Digest(child.Digest.String()))
			}
		}
		return nil, nil
	}
	for _, child := range c.children {
		d := digest.Digest(child.Digest.String())
		blobs = append(blobs, content{descriptor: child})
		if _, ok := f.contents[d]; !ok {
			missing = append(missing, d)
		}
	}
	return blobs, missing
}

func size(blobs []content) (sum int64) {
	for _, b := range blobs {
		sum += b.descriptor.Size
	}
	return sum
}

// Retain implements nodeagent.Runtime.
func (f *Fake) Retain(_ context.Context, retained []nodeagent.Retained) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped != nil {
		return f.stopped
	}
	pinned, wanted := map[string]bool{}, map[imageref.Reference]bool{}
	for _, image := range retained {
		wanted[image.Ref] = true
		if image.Pinned && image.Digest != "" {
			for _, name := range image.Ref.Names(image.Digest) {
				pinned[name] = true
			}
		}
	}
	for name, r := range f.records {
		r.ours = pinned[name]
	}
	maps.DeleteFunc(f.leased, func(ref imageref.Reference, _ []digest.Digest) bool { return !wanted[ref] })
	f.collect()
	return nil
}

// collect deletes the content that neither a record nor a lease needs.
func (f *Fake) collect() {
	needed := map[digest.Digest]bool{}
	for _, leased := range f.leased {
		for _, d := range leased {
			needed[d] = true
		}
	}
	var keep func(d digest.Digest)
	keep = func(d digest.Digest) {
		needed[d] = true
		for _, child := range f.contents[d].children {
			keep(digest.Digest(child.Digest.String()))
		}
	}
	for _, r := range f.records {
		keep(r.digest)
	}
	maps.DeleteFunc(f.contents, func(d digest.Digest, _ content) bool { return !needed[d] })
}

// Watch implements nodeagent.Runtime.
func (f *Fake) Watch(ctx context.Context, connected func(), changed func(nodeagent.Change), found func([]nodeagent.Finding)) error {
	f.mu.Lock()
	if f.stopped != nil {
		f.mu.Unlock()
		return f.stopped
	}
	changes, findings, lost := make(chan nodeagent.Change, 100), make(chan []nodeagent.Finding, 100), f.lost
	f.watchers[changes] = findings
	findings <- f.findings
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, changes)
	}()
	connected()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lost:
			return nodeagent.ErrRuntimeUnavailable
		case c := <-changes:
			changed(c)
		case all := <-findings:
			found(all)
		}
	}
}

// Find sets what is wrong on the node.
func (f *Fake) Find(findings ...nodeagent.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.findings = findings
	for _, all := range f.watchers {
		all <- findings
	}
}

// Stop makes every call fail with the error until Start.
func (f *Fake) Stop(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = err
	close(f.lost)
	f.lost = make(chan struct{})
}

// Start ends Stop.
func (f *Fake) Start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = nil
}

// Record looks up a name.
func (f *Fake) Record(name string) (Record, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.records[name]
	if !ok {
		return Record{}, false
	}
	return Record{Digest: r.digest, Pinned: r.ours || r.theirsPin}, true
}

// Delete deletes a name, and the content that no other name needs.
func (f *Fake) Delete(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delete(name)
	f.notify(nodeagent.Change{Name: name, Deleted: true})
}

// Lose deletes as Delete does, but notifies no watcher.
func (f *Fake) Lose(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delete(name)
}

func (f *Fake) delete(name string) {
	delete(f.records, name)
	f.collect()
}

// Point makes or moves a name as another client would.
func (f *Fake) Point(name string, d digest.Digest, pinned bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records[name] = &record{digest: d, theirsPin: pinned}
	f.notify(nodeagent.Change{Name: name})
}

func (f *Fake) set(name string, d digest.Digest, pinned bool) {
	if f.records[name] == nil {
		f.records[name] = &record{}
	}
	f.records[name].digest = d
	f.records[name].ours = f.records[name].ours || pinned
	f.notify(nodeagent.Change{Name: name})
}

func (f *Fake) notify(c nodeagent.Change) {
	for changes := range f.watchers {
		changes <- c
	}
}

// Pulls are the requests of all pulls so far.
func (f *Fake) Pulls() []nodeagent.PullRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]nodeagent.PullRequest(nil), f.pulls...)
}

// MostPulling is the largest number of pulls that ran at the same time.
func (f *Fake) MostPulling() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mostPulling
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
