// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package eviction reads from the kubelet's configuration below what free space the kubelet deletes images
// and evicts Pods.
package eviction

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

// Thresholds are what must stay free of a file system with images. The zero value asks for nothing.
type Thresholds struct {
	bytes, inodes []threshold
	// ImageGCPercent is from what use on, in percent, the kubelet deletes images that nothing uses.
	ImageGCPercent int
}

// threshold is a share of the file system or, if that is 0, a number.
type threshold struct {
	share  float64
	number int64
}

// The kubelet's defaults on Linux (pkg/kubelet/apis/config/v1beta1/defaults.go).
var (
	hardDefaults          = map[string]string{"imagefs.available": "15%", "nodefs.available": "10%", "imagefs.inodesFree": "5%", "nodefs.inodesFree": "5%"}
	imageGCPercentDefault = 85
)

// configuration has the fields of a KubeletConfiguration that count here.
type configuration struct {
	APIVersion                   string            `json:"apiVersion"`
	Kind                         string            `json:"kind"`
	EvictionHard                 map[string]string `json:"evictionHard"`
	EvictionSoft                 map[string]string `json:"evictionSoft"`
	MergeDefaultEvictionSettings bool              `json:"mergeDefaultEvictionSettings"`
	ImageGCHighThresholdPercent  *int              `json:"imageGCHighThresholdPercent"`
}

// Read reads a file with a KubeletConfiguration. What the kubelet was told by flags or by drop-in files is
// not seen.
func Read(path string) (Thresholds, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Thresholds{}, err
	}
	t, err := parse(raw)
	if err != nil {
		return Thresholds{}, fmt.Errorf("read the kubelet's configuration %s: %w", path, err)
	}
	return t, nil
}

func parse(raw []byte) (Thresholds, error) {
	var config configuration
	if err := yaml.Unmarshal(raw, &config); err != nil {
		return Thresholds{}, err
	}
	if config.Kind != "KubeletConfiguration" || !strings.HasPrefix(config.APIVersion, "kubelet.config.k8s.io/") {
		return Thresholds{}, fmt.Errorf("it is a %q of %q, no KubeletConfiguration", config.Kind, config.APIVersion)
	}
	t := Thresholds{ImageGCPercent: imageGCPercentDefault}
	if config.ImageGCHighThresholdPercent != nil {
		t.ImageGCPercent = *config.ImageGCHighThresholdPercent
	}
	// Images may be on the node's own file system. Which of the two the agent sees it cannot tell.
	for _, place := range []string{"imagefs.", "nodefs."} {
		for signal, list := range map[string]*[]threshold{place + "available": &t.bytes, place + "inodesFree": &t.inodes} {
			for _, text := range []string{config.hard(signal), config.EvictionSoft[signal]} {
				if text == "" {
					continue
				}
				parsed, err := parseThreshold(text)
				if err != nil {
					return Thresholds{}, fmt.Errorf("%s: %w", signal, err)
				}
				*list = append(*list, parsed)
			}
		}
	}
	return t, nil
}

// hard is a hard threshold. One that is set turns the defaults of the others off.
func (c configuration) hard(signal string) string {
	if text, set := c.EvictionHard[signal]; set || len(c.EvictionHard) > 0 && !c.MergeDefaultEvictionSettings {
		return text
	}
	return hardDefaults[signal]
}

func parseThreshold(text string) (threshold, error) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		share, err := strconv.ParseFloat(percent, 64)
		if err != nil || share < 0 || share > 100 {
			return threshold{}, fmt.Errorf("%q is not a percentage", text)
		}
		return threshold{share: share / 100}, nil
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return threshold{}, fmt.Errorf("%q: %w", text, err)
	}
	return threshold{number: quantity.Value()}, nil
}

// Bytes is how many must stay free of a file system with so many.
func (t Thresholds) Bytes(total int64) int64 { return largest(t.bytes, total) }

// Inodes is how many must stay free of a file system with so many.
func (t Thresholds) Inodes(total int64) int64 { return largest(t.inodes, total) }

func largest(thresholds []threshold, total int64) (most int64) {
	for _, t := range thresholds {
		most = max(most, t.number, int64(math.Ceil(t.share*float64(total))))
	}
	return most
}
